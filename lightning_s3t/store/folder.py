"""The folder of a store: what it may contain before the store is created."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lightning_s3t.errors import StoreError
from lightning_s3t.store.disk.files import half_written_name, unlink_all
from lightning_s3t.store.disk.journal_file import FILE as JOURNAL
from lightning_s3t.store.disk.lock import ERASURE_LOCK, LEDGER_LOCK
from lightning_s3t.store.disk.lock import FILE as LOCK_FILE
from lightning_s3t.store.disk.scratch import FOLDER as SCRATCH
from lightning_s3t.store.keys.identities import KEY_FILE
from lightning_s3t.store.ledgers.address import FILE as ADDRESS
from lightning_s3t.store.ledgers.address import MOVED
from lightning_s3t.store.ledgers.sqlite import FILE
from lightning_s3t.store.snapshots.snapshots import FOLDER

# the rollback journal exists while another process creates the ledger
_ROLLBACK = f"{FILE}-journal"
_MAGIC = bytes.fromhex(
    "d9d505f920a163d7"
)  # of SQLite's journals: https://sqlite.org/fileformat2.html#the_rollback_journal
_LEDGER_FILES = {FILE, _ROLLBACK, f"{FILE}-wal", f"{FILE}-shm", ADDRESS}
_FOLDERS = frozenset({FOLDER, SCRATCH})
_ONE_NAME = frozenset({FILE, ADDRESS, JOURNAL})  # which are written to where they are
OWN_FILES = frozenset({*_LEDGER_FILES, MOVED, JOURNAL, KEY_FILE, LOCK_FILE, LEDGER_LOCK, ERASURE_LOCK}) | _FOLDERS


def check_free(folder: Path) -> None:
    """Check that a store can be made in a folder without a ledger.

    Args:
        folder: The folder.

    Raises:
        StoreError: It contains other files, or the rest of a store that has lost its ledger.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or {half_written_name(entry) or entry.name for entry in folder.iterdir()} - OWN_FILES:
        raise StoreError(f"{folder} is not a store, and not empty. Give a new or an empty folder as `store`.")
    # a store's ledger is created first; without it, the record of forgotten subjects is lost
    if any((folder / FOLDER).glob("*")):
        raise StoreError(
            f"The store {folder} has snapshots but no {FILE}. Only this file says which of them a request has "
            f"revoked. Restore {FILE} from a backup, or give a new folder as `store`."
        )


def check_own_files(folder: Path) -> None:
    """Check that the files which a store reads and writes are its own, before SQLite or anything else uses them.

    Args:
        folder: The store.

    Raises:
        StoreError: A file in the folder is a link, is not a plain file, or would make SQLite remove other files.
    """
    for name in sorted(OWN_FILES):
        try:
            found = (folder / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            raise StoreError(
                f"The store {folder} cannot be read or written by this process: permission denied. Expected both "
                "permissions, even for serving: run as the store's owner."
            ) from error
        mode = found.st_mode
        plain = stat.S_ISDIR if name in _FOLDERS else stat.S_ISREG
        if not plain(mode):
            what = "a symbolic link, and links are not followed" if stat.S_ISLNK(mode) else "something else"
            kind = "folder" if name in _FOLDERS else "file"
            raise StoreError(
                f"{folder / name} is {what}. Expected a {kind} that belongs to the store: put it there, or mount its "
                "disk there. Nothing was changed."
            )
        if name in _ONE_NAME and found.st_nlink > 1:
            raise StoreError(
                f"{folder / name} is a hard link: writes to it would also appear under its other name. Expected a "
                "file that belongs to the store alone: replace it with a copy. Nothing was changed."
            )
    if _names_other_files(folder / _ROLLBACK):
        raise StoreError(
            f"{folder / _ROLLBACK} names a file that SQLite would remove when it opens {FILE}. A store never has such "
            "a journal: it was put there. Nothing was changed. Use the store only if you trust whoever made it, and "
            f"remove {_ROLLBACK} first."
        )


def _names_other_files(journal: Path) -> bool:
    """Say whether a rollback journal ends with the name of a journal of several databases, which SQLite removes.

    A store has one database, and a rollback journal only while that is made: after, it has a write-ahead log.
    """
    try:
        with journal.open("rb") as file:
            file.seek(-len(_MAGIC), os.SEEK_END)
            return file.read() == _MAGIC
    except OSError:  # it does not exist, or is shorter
        return False


def make_folder(folder: Path) -> None:
    """Create a store's folder, accessible only to its owner.

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
        raise StoreError(f"The store {folder} cannot be created ({error}). Give a folder that is writable.") from error


def clear_half_written(folder: Path) -> None:
    """Remove half-written files of a killed process next to the ledger; for the holder of the ledger's lock.

    Args:
        folder: The folder.
    """
    unlink_all([entry for entry in folder.iterdir() if half_written_name(entry) in OWN_FILES])
