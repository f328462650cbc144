"""The generations of a store: opened by a registration, closed by the first unit that is trained, and merged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime, timezone

from lightning_s3t.core.events import Exported, Merge, Schedule
from lightning_s3t.core.generations import Generation, read_generations, write_generations
from lightning_s3t.core.units import Place
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Partition
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import record
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Ledger, ledger_errors
from lightning_s3t.store.requests.erasure import remove

_NOTE = "generations"


def generations_of(ledger: Ledger) -> tuple[Generation, ...]:
    """Return the generations of a store, from number 0 on; none before subjects were registered.

    Args:
        ledger: The ledger.

    Raises:
        StoreError: The note cannot be read.
    """
    text = ledger.notes(_NOTE).get(_NOTE)
    if text is None:
        return ()
    with ledger_errors("The list of generations"):
        return read_generations(text)


def generation_of_newcomers(store: Backend, append: bool) -> int:
    """Return the generation for new people, and open one if necessary; within a transaction.

    Whether one is open depends on what was trained, not on the number of people: a subject's place must not depend on
    other subjects.

    Args:
        store: The store's backend.
        append: Whether they form their own generation, if a unit was trained on the previous ones.
    """
    found = generations_of(store.ledger)
    if found and (not append or not found[-1].closed):
        return len(found) - 1 if append else 0
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _note(store, (*found, Generation(now)))
    return len(found)


def close_generation(store: Backend, generation: int) -> None:
    """Record that a unit was trained on a generation, so that later subjects join another one; within a transaction.

    Args:
        store: The store's backend.
        generation: Its number.
    """
    found = generations_of(store.ledger)
    if generation < len(found) and not found[generation].closed:
        _note(store, (*found[:generation], replace(found[generation], closed=True), *found[generation + 1 :]))


def merge_generations(store: Backend, keyring: Keyring, partition: Partition, into: int) -> None:
    """Put all generations after one into it; within a transaction.

    The units of the merged generations are removed. The units of the one that stays serve until the next fit, which
    trains them again on everyone in it. The slice of a subject does not change, so scheduled requests and exported
    copies move with the shard.

    Args:
        store: The store's backend.
        keyring: The store's keys.
        partition: The partition of the subjects.
        into: The generation that stays, from 1 on.

    Raises:
        ConfigurationError: The generation does not exist or is the last one, or a subject in them is restricted.
    """
    ledger, found = store.ledger, generations_of(store.ledger)
    if not 1 <= into < len(found) - 1:
        raise ConfigurationError(
            f"Generations cannot be merged into {into}: the store {store.folder} has {max(len(found) - 1, 0)} after "
            "the first. Expected the number of a generation, 1 or more, that has later ones."
        )
    target = partition.shard_of_generation(into)
    _check_unrestricted(store, target)
    merged = Merge(into, target)
    record(store, "merge", None, asdict(merged))
    merge_again(store, merged)
    for export in ledger.exports():
        cells = tuple(map(merged.moved, export.cells))
        if cells != export.cells:
            ledger.add_export(replace(export, cells=cells), {})
            record(store, "export", None, asdict(Exported(export.name, cells, export.as_of)))
    waiting = [(hash_, due, cell) for hash_, due, cell in ledger.scheduled() if merged.moved(cell) != cell]
    if waiting:
        rows = [(hash_, due, merged.moved(cell)) for hash_, due, cell in waiting]
        ledger.schedule(rows)
        body = Schedule(keyring.layers, tuple((hash_.hex(), due, cell) for hash_, due, cell in rows))
        record(store, "schedule", None, asdict(body))


def merge_again(store: Backend, merged: Merge) -> None:
    """Put generations into an earlier one, as an event says; within a transaction.

    A ledger that was restored from an earlier backup has to: later events name the shard where people are since.

    Args:
        store: The store's backend.
        merged: The body of the event.
    """
    ledger, found, into = store.ledger, generations_of(store.ledger), merged.into
    gone = range(into + 1, len(found))
    if not gone:  # registered after the backup
        return
    names = [name for number in gone for name in ledger.scores(f"{merged.shard + number - into}/")]
    remove(store, names, None)
    ledger.merge_generations(into)
    _note(store, (*found[:into], replace(found[into], closed=True)))


def _check_unrestricted(store: Backend, target: int) -> None:
    """Raise an error if a subject of the merged generations is restricted: units are set aside there."""
    restricted = [mark for mark in store.ledger.marks("restricted") if Place.parse(mark.cell).shard >= target]
    aside = [one for one in store.ledger.aside() if any(Place.parse(cell).shard >= target for cell in one.cells)]
    if restricted or aside:
        raise ConfigurationError(
            f"Generations cannot be merged in the store {store.folder} while people in them are restricted: "
            f"{len(restricted)} people are, and {len(aside)} units are set aside for them. Release or forget them "
            "first."
        )


def _note(store: Backend, generations: Iterable[Generation]) -> None:
    store.authenticator.note({_NOTE: write_generations(generations)})
