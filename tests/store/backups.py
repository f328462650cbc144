"""Backups of a ledger, and their restoration, as the docs say."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path


def back_up(path: Path, to: Path) -> None:
    """Copy the ledger as a backup tool does that knows SQLite."""
    source, target = sqlite3.connect(path / "ledger.db"), sqlite3.connect(to)
    source.backup(target)
    source.close()
    target.close()


def restore(path: Path, backup: Path) -> None:
    """Put a backup in the place of a store's ledger."""
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (path / name).unlink(missing_ok=True)
    shutil.copy(backup, path / "ledger.db")
