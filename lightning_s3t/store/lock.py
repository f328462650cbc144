"""The fit lock: one fit at a time on a store."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_s3t.errors import StoreError

FILE = "fit.lock"


class FitLock:
    """A lock on a file, which the operating system releases when its holder dies.

    Args:
        folder: The store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """Holds the lock while the block runs, if nobody else does; yields whether it is held."""
        with self._path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the lock while the block runs.

        Raises:
            StoreError: Somebody else holds it.
        """
        with self.attempt() as free:
            if not free:
                raise StoreError(
                    f"Another fit is running on the store {self._path.parent}. Wait for it to end; a fit that was "
                    "killed holds no lock."
                )
            yield
