"""The registry: who is in the training data, as keyed hashes, each with its band of risk."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from lightning_s3t.errors import DataError
from lightning_s3t.plan import Partition
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Ledger

_CHUNK = 100_000


def register(ledger: Ledger, keyring: Keyring, subjects: Iterable[tuple[str, int]], partition: Partition) -> None:
    """Notes subjects in one transaction, except for those who are forgotten.

    Who is to be forgotten later, and was unknown when that was asked, is found where the band now puts them.

    Args:
        ledger: The ledger.
        keyring: The store's keys.
        subjects: Canonical ids and bands; streamed.
        partition: Where subjects belong.

    Raises:
        DataError: A subject is there with another band; nothing has changed then.
    """
    with ledger.transaction() as connection:
        keyring.refresh()
        streamed = iter(subjects)
        while some := list(islice(streamed, _CHUNK)):
            banded = {keyring.hash(subject): partition.place(subject, band) for subject, band in some if band}
            moves = [(banded[hash_].shard, banded[hash_].slice, hash_) for hash_ in ledger.present("pending", banded)]
            connection.executemany("UPDATE pending SET shard = ?, slice = ? WHERE hash = ?", moves)
            chunk = sorted((keyring.hash(subject), band) for subject, band in some)  # neighbours are on one page
            connection.executemany(
                "INSERT OR IGNORE INTO subjects SELECT ?1, ?2 "
                "WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE hash = ?1)",
                chunk,
            )
            given = {hash_: band for hash_, band in chunk if band}
            kept = read_bands(ledger, (hash_ for hash_, _ in chunk))
            moved = sum(given.get(hash_, 0) != band for hash_, band in kept.items())
            if moved:
                raise DataError(
                    f"{moved} of the subjects are in another band of risk than when they were registered, so their "
                    "data would move to other slices. Expected risks and thresholds that stay as they were: keep "
                    "them, or train into a new store."
                )


def read_bands(ledger: Ledger, hashes: Iterable[bytes]) -> dict[bytes, int]:
    """Returns the bands of subjects that are registered.

    Args:
        ledger: The ledger.
        hashes: Their keyed hashes.
    """
    asked, found = iter(hashes), dict[bytes, int]()
    while chunk := list(islice(asked, 500)):  # well under SQLite's limit on variables
        marks = ",".join("?" * len(chunk))
        found.update(ledger.connection.execute(f"SELECT hash, band FROM subjects WHERE hash IN ({marks})", chunk))
    return found


def is_registering(ledger: Ledger) -> bool:
    """Says whether the store notes who is in the training data; without, it cannot tell who is unknown.

    Args:
        ledger: The ledger.
    """
    return ledger.get("register") != "no"
