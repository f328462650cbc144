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
            chunk = sorted((keyring.hash(subject), band, subject) for subject, band in some)  # neighbours: one page
            if partition.bands:
                _move_pending(ledger, partition, chunk)
            connection.executemany(
                "INSERT OR IGNORE INTO subjects SELECT ?1, ?2 "
                "WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE hash = ?1)",
                [(hash_, band) for hash_, band, _ in chunk],
            )
            if partition.bands:
                _check_bands(ledger, chunk)


def _move_pending(ledger: Ledger, partition: Partition, chunk: Iterable[tuple[bytes, int, str]]) -> None:
    places = {hash_: partition.place(subject, band) for hash_, band, subject in chunk if band}
    moves = [(places[hash_].shard, places[hash_].slice, hash_) for hash_ in ledger.present("pending", places)]
    ledger.connection.executemany("UPDATE pending SET shard = ?, slice = ? WHERE hash = ?", moves)


def _check_bands(ledger: Ledger, chunk: Iterable[tuple[bytes, int, str]]) -> None:
    given = {hash_: band for hash_, band, _ in chunk}
    moved = sum(given[hash_] != band for hash_, band in read_bands(ledger, given).items())
    if moved:
        raise DataError(
            f"{moved} of the subjects are in another band of risk than when they were registered, so their data would "
            "move to other slices. Expected risks and thresholds that stay as they were: keep them, or train into a "
            "new store."
        )


def read_bands(ledger: Ledger, hashes: Iterable[bytes]) -> dict[bytes, int]:
    """Returns the bands of subjects that are registered.

    Args:
        ledger: The ledger.
        hashes: Their keyed hashes.
    """
    return dict(ledger.look_up("subjects", "hash, band", hashes))


def is_registering(ledger: Ledger) -> bool:
    """Says whether the store notes who is in the training data; without, it cannot tell who is unknown.

    Args:
        ledger: The ledger.
    """
    return ledger.get("register") != "no"
