"""Connections to SQLite whose errors are ours: of a damaged file, of a disk that is full or cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lightning_s3t.errors import StoreError

PATIENCE = 30  # seconds
_CACHE = 65_536  # KiB: rows of a registry come in the order of their hashes, which is no order
_Result = TypeVar("_Result")


class _Cursor(sqlite3.Cursor):
    def execute(self, *args: Any) -> _Cursor:
        return self._ours(super().execute, *args)

    def executemany(self, *args: Any) -> _Cursor:
        return self._ours(super().executemany, *args)

    def fetchone(self) -> Any:
        return self._ours(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._ours(super().fetchall)

    def __next__(self) -> Any:
        return self._ours(super().__next__)

    def _ours(self, call: Callable[..., _Result], *args: Any) -> _Result:
        try:
            return call(*args)
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"The ledger could not be read or written ({error}). Let the other process end, make room on the "
                "disk, or see to the files' permissions, and try again."
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise StoreError(
                f"The ledger is damaged ({error}). Nothing is served from a damaged ledger: restore ledger.db from a "
                "backup (what it lacks is carried out again from the journal), or train again into a new folder."
            ) from error


class _Connection(sqlite3.Connection):
    def execute(self, *args: Any) -> _Cursor:
        return self.cursor(_Cursor).execute(*args)

    def executemany(self, *args: Any) -> _Cursor:
        return self.cursor(_Cursor).executemany(*args)


def connect(path: Path) -> sqlite3.Connection:
    """Opens a database, so that nothing deleted can be read in it, and nothing committed is lost.

    Args:
        path: The file.

    Raises:
        StoreError: It is no database, or cannot be read.
    """
    try:
        connection = sqlite3.connect(
            path, timeout=PATIENCE, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except sqlite3.OperationalError as error:
        raise StoreError(f"The ledger {path} cannot be opened ({error}).") from error
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA cache_size = -{_CACHE}")
    connection.execute("PRAGMA synchronous = FULL")
    return connection
