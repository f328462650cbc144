"""The registry: who is in the training data, as keyed hashes, each with its band of risk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice

from lightning_s3t.core.events import Schedule
from lightning_s3t.errors import DataError
from lightning_s3t.plan import Partition
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import record
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Ledger

_CHUNK = 100_000


def register(store: Backend, keyring: Keyring, subjects: Iterable[tuple[str, int]], partition: Partition) -> None:
    """Notes subjects in one transaction, except for those who are forgotten.

    Who is to be forgotten later, and was unknown when that was asked, is found where the band now puts them.

    Args:
        store: Where the store lies.
        keyring: The store's keys.
        subjects: Canonical ids and bands; streamed.
        partition: Where subjects belong.

    Raises:
        DataError: A subject is there with another band; nothing has changed then.
    """
    ledger = store.ledger
    with ledger.transaction():
        streamed = iter(subjects)
        while some := dict(islice(streamed, _CHUNK)):
            hashed = keyring.hashes(some)
            bands = {hash_: some[hashed[hash_]] for hash_ in sorted(hashed)}  # neighbours are on one page
            if partition.bands:
                _move_waiting(store, keyring, partition, {hashed[hash_]: hash_ for hash_ in bands}, some)
            ledger.register(bands.items())
            if partition.bands:
                _check_bands(ledger, bands)


def _move_waiting(
    store: Backend, keyring: Keyring, partition: Partition, hashes: Mapping[str, bytes], bands: Mapping[str, int]
) -> None:
    ledger = store.ledger
    cells = {hashes[subject]: partition.place(subject, band).cell for subject, band in bands.items() if band}
    if not ledger.waiting(cells):
        return
    moved = [(hash_, due, cells[hash_]) for hash_, due, cell in ledger.scheduled() if cells.get(hash_, cell) != cell]
    if moved:
        ledger.schedule(moved)
        pending = tuple((hash_.hex(), due, cell) for hash_, due, cell in moved)
        record(store, "schedule", None, asdict(Schedule(keyring.layers, pending)))


def _check_bands(ledger: Ledger, given: Mapping[bytes, int]) -> None:
    moved = sum(given[hash_] != band for hash_, band in ledger.bands(given).items())
    if moved:
        raise DataError(
            f"{moved} of the subjects are in another band of risk than when they were registered, so their data would "
            "move to other slices. Expected risks and thresholds that stay as they were: keep them, or train into a "
            "new store."
        )


def is_registering(ledger: Ledger) -> bool:
    """Return whether the store notes who is in the training data; without, it cannot tell who is unknown.

    Args:
        ledger: The ledger.
    """
    return ledger.notes("register").get("register") != "no"
