"""Scratch: folders in a store for temporary files, so that a crash leaves no files that requests cannot find."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from lightning_s3t.errors import StoreError

FOLDER = "scratch"


class Scratch:
    """A folder that goes with the process that made it: when it is closed, or at the next look after a crash.

    It is locked while it is in use. The operating system releases the lock when the process dies, and the next opening
    of the store, or the next request to it, removes the folder.

    Args:
        store: The store's folder, which may be yet to be made.

    Attributes:
        path: The folder.

    Raises:
        StoreError: It cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as store:
        ...     scratch = Scratch(Path(store))
        ...     clear_scratch(Path(store))  # it is in use
        ...     there = scratch.path.is_dir()
        ...     scratch.close()
        ...     there, list(Path(store).iterdir())
        (True, [])
    """

    def __init__(self, store: Path) -> None:
        self._made_store = not store.exists()
        self.path, self._lock = _make(store)

    def close(self) -> None:
        """Remove the folder, and those around it that are empty and were made for it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        with contextlib.suppress(OSError):  # the others are in use
            self.path.parent.rmdir()
            if self._made_store:
                self.path.parent.parent.rmdir()


def clear_scratch(store: Path) -> None:
    """Remove the files of dead processes.

    Args:
        store: The store's folder.

    Raises:
        StoreError: Something of it could not be removed.
    """
    folder = store / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return
    try:
        for left in folder.iterdir():
            _remove_unless_in_use(left)
    except OSError as error:
        raise StoreError(
            f"Files that a dead process left in {folder} could not be removed ({error}). Remove the cause and open "
            "the store again."
        ) from error
    with contextlib.suppress(OSError):
        folder.rmdir()


def _make(store: Path) -> tuple[Path, int]:
    while True:
        path = store / FOLDER / secrets.token_hex(8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(mode=0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process has just cleared up
            continue
        except OSError as error:
            raise StoreError(f"No folder could be created in {store / FOLDER} ({error}).") from error
        if _is_locked_by(lock) and path.exists():
            return path, lock
        os.close(lock)


def _remove_unless_in_use(left: Path) -> None:
    try:
        lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError:  # no folder, so none of ours
        left.unlink(missing_ok=True)
        return
    try:
        if _is_locked_by(lock):
            shutil.rmtree(left)
    except FileNotFoundError:  # another process was faster
        pass
    finally:
        os.close(lock)


def _is_locked_by(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
