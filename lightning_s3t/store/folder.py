"""The folder of a store: what may lie in it before the store is made."""

from __future__ import annotations

from pathlib import Path

from lightning_s3t.errors import StoreError
from lightning_s3t.store.files import is_half_written, unlink_all
from lightning_s3t.store.identities import KEY_FILE
from lightning_s3t.store.journal import FILE as JOURNAL
from lightning_s3t.store.lock import FILE as LOCK_FILE
from lightning_s3t.store.lock import LEDGER_LOCK
from lightning_s3t.store.snapshots import FOLDER
from lightning_s3t.store.sqlite_ledger import FILE

# "-journal" is there for as long as another process takes to make the ledger
_LEDGER_FILES = {FILE, f"{FILE}-journal", f"{FILE}-wal", f"{FILE}-shm"}
OWN_FILES = frozenset({*_LEDGER_FILES, JOURNAL, KEY_FILE, LOCK_FILE, LEDGER_LOCK, FOLDER})


def check_free(folder: Path) -> None:
    """Checks that a store can be made in a folder without a ledger.

    Args:
        folder: The folder.

    Raises:
        StoreError: Other things lie in it, or the rest of a store that has lost its ledger.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or {entry.name for entry in folder.iterdir() if not is_half_written(entry)} - OWN_FILES:
        raise StoreError(f"{folder} is no store, and not empty. Give a new or an empty folder as `store`.")
    # a store's ledger is made before anything else: with it, who was forgotten is lost
    if any((folder / FOLDER).glob("*")):
        raise StoreError(
            f"The store {folder} has snapshots but no {FILE}. Without it nobody knows which of them a request has "
            f"revoked: restore {FILE} from a backup, or give a new folder as `store`."
        )


def make_folder(folder: Path) -> None:
    """Makes a store's folder, for its owner alone.

    Args:
        folder: The folder.

    Raises:
        StoreError: It cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in (folder, folder / FOLDER):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The store {folder} cannot be made ({error}). Give a folder that can be written.") from error


def clear_half_written(folder: Path) -> None:
    """Removes what a process that was killed has half-written beside the ledger; for the holder of the ledger's lock.

    Args:
        folder: The folder.
    """
    unlink_all([entry for entry in folder.iterdir() if is_half_written(entry)])
