"""Values that the database gives back whole, and that nobody can read: SQLite notices no bit that flips in a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_s3t.errors import StoreError


@contextmanager
def legible(what: str) -> Iterator[None]:
    """Turns what comes of reading a value that is not what was written into an error of ours.

    Args:
        what: What is read, for the message.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        yield
    except StoreError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"{what} cannot be read ({type(error).__name__}: {error}): the ledger is damaged, or was changed. Restore "
            "ledger.db from a backup (what it lacks is carried out again from the journal), or train again into a new "
            "folder."
        ) from error
