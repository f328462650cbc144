"""Locks of a store: one fit at a time, and one process at a time that makes it or writes its journal."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lightning_s3t.errors import StoreError
from lightning_s3t.store.disk.files import open_own

FILE = "fit.lock"
LEDGER_LOCK = "ledger.lock"
ERASURE_LOCK = "erasure.lock"
_PATIENCE = 30.0  # seconds
_ERASURE_PATIENCE = 600.0


class FitLock:
    """A lock on a file, which the operating system releases when its holder dies.

    A fit holds it alone. Processes that open the store while no fit runs hold it in shared mode while they clean up, so
    that a fit can distinguish them from another fit and waits for them.

    Args:
        folder: The store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    @contextmanager
    def no_fit(self) -> Iterator[bool]:
        """Keep fits out while the block runs; yield False without doing so if one runs."""
        with _open(self._path) as file:
            held = _lock(file, fcntl.LOCK_SH)
            try:
                yield held
            finally:
                _unlock(file, os.getpid())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock while the block runs.

        Raises:
            StoreError: Another fit holds it.
        """
        with _open(self._path) as file:
            self._acquire(file)
            holder = os.getpid()
            try:
                yield
            finally:
                _unlock(file, holder)

    def _acquire(self, file: IO[str]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not _lock(file, fcntl.LOCK_EX):
            # a shared lock is refused only during a fit
            if not _lock(file, fcntl.LOCK_SH) or time.monotonic() > deadline:
                raise StoreError(
                    f"Another fit is running on the store {self._path.parent}. Wait for it to end; a fit that was "
                    "killed holds no lock."
                )
            _unlock(file, os.getpid())
            time.sleep(0.01)


@contextmanager
def ledger_lock(folder: Path) -> Iterator[None]:
    """Prevent other processes and threads from creating a store, or from writing files next to its ledger.

    Take it outside of a transaction, never within: so that no two processes wait for each other.

    Args:
        folder: The store.

    Raises:
        StoreError: Another process does not release it.
    """
    with _held(folder / LEDGER_LOCK, _PATIENCE, 0.002):
        yield


@contextmanager
def erasure_lock(folder: Path) -> Iterator[None]:
    """Prevent other processes and threads from erasing snapshots in remote storage.

    Take it outside of a transaction, never within.

    Args:
        folder: The store.

    Raises:
        StoreError: Another process does not release it.
    """
    with _held(folder / ERASURE_LOCK, _ERASURE_PATIENCE, 0.02):
        yield


@contextmanager
def _held(path: Path, patience: float, pause: float) -> Iterator[None]:
    with _open(path) as file:
        deadline = time.monotonic() + patience
        while not _lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Another process has held {path} for {patience:.0f} seconds. Wait for it to end, and try again."
                )
            time.sleep(pause)
        holder = os.getpid()
        try:
            yield
        finally:
            _unlock(file, holder)


def _open(path: Path) -> IO[str]:
    return open(path, "a", opener=open_own)


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: IO[str], holder: int) -> None:
    # closing is not enough: a worker process that was forked since has the file open too. But such a worker must not
    # release it either
    if os.getpid() == holder:
        fcntl.flock(file, fcntl.LOCK_UN)
