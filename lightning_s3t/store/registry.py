"""The registry: who is in the training data, as keyed hashes, each with its band of risk and its generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Literal

from lightning_s3t.core.events import Schedule
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import DataError
from lightning_s3t.plan import Partition
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.generations import generation_of_newcomers, generations_of
from lightning_s3t.store.history import record
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Ledger

Newcomers = Literal["retrain", "append"]
"""Where people who come later belong: in the existing shards, or in a generation of their own."""

_CHUNK = 100_000


def register(
    store: Backend,
    keyring: Keyring,
    subjects: Iterable[tuple[str, int]],
    partition: Partition,
    newcomers: Newcomers = "retrain",
) -> int:
    """Register subjects in one transaction, except forgotten ones.

    Scheduled subjects who were unknown when the request was made get the place of their band and generation.

    Args:
        store: The store's backend.
        keyring: The store's keys.
        subjects: Canonical ids and bands; streamed.
        partition: The partition of the subjects.
        newcomers: Where new subjects belong.

    Returns:
        Number of subjects who came later.

    Raises:
        DataError: A subject is registered with another band. Nothing was changed.
    """
    ledger, count = store.ledger, 0
    with ledger.transaction():
        is_first = not generations_of(ledger)
        streamed = iter(subjects)
        while some := dict(islice(streamed, _CHUNK)):
            hashed = keyring.hashes(some)
            known = {} if is_first else ledger.bands(hashed)
            if partition.bands:
                _check_bands(known, {hash_: some[hashed[hash_]] for hash_ in known})
            bands = {
                hash_: some[hashed[hash_]] for hash_ in sorted(hashed) if hash_ not in known
            }  # neighbours: one page
            if not bands:
                continue
            count += len(bands)
            generation = generation_of_newcomers(store, append=newcomers == "append")
            waiting = ledger.waiting(bands)
            if waiting:
                cells = {hash_: partition.place(hashed[hash_], bands[hash_], generation).cell for hash_ in waiting}
                _move_waiting(store, keyring, cells)
            ledger.register(bands.items(), generation)
    return 0 if is_first else count


def _move_waiting(store: Backend, keyring: Keyring, cells: Mapping[bytes, Cell]) -> None:
    """Note where the data of scheduled subjects now is: they were unknown, or known only to a ledger that was lost."""
    ledger = store.ledger
    moved = [(hash_, due, cells[hash_]) for hash_, due, cell in ledger.scheduled() if cells.get(hash_, cell) != cell]
    if moved:
        ledger.schedule(moved)
        pending = tuple((hash_.hex(), due, cell) for hash_, due, cell in moved)
        record(store, "schedule", None, asdict(Schedule(keyring.layers, pending)))


def _check_bands(known: Mapping[bytes, int], given: Mapping[bytes, int]) -> None:
    moved = sum(given[hash_] != band for hash_, band in known.items())
    if moved:
        raise DataError(
            f"{moved} of the subjects are in another risk band than when they were registered, so their data would "
            "move to other slices. Expected the same risks and thresholds as before: keep them, or train into a new "
            "store."
        )


def is_registering(ledger: Ledger) -> bool:
    """Return whether the store records who is in the training data, which it needs to recognise unknown subjects.

    Args:
        ledger: The ledger.
    """
    return ledger.notes("register").get("register") != "no"
