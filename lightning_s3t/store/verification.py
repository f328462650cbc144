"""Verification: whether a store matches its history."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lightning_s3t.core.events import Event, first_break
from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.copies.copying import clear_begun, unerased
from lightning_s3t.store.copies.exporting import check_exports
from lightning_s3t.store.disk.files import size_of
from lightning_s3t.store.disk.scratch import FOLDER as SCRATCH
from lightning_s3t.store.folder import OWN_FILES
from lightning_s3t.store.heads.floor import problems as floor_problems
from lightning_s3t.store.keys.authentication import change_of, layers_after
from lightning_s3t.store.keys.identities import KEY_FILE
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Ledger, Mark, OwnedFile
from lightning_s3t.store.ledgers.sqlite import FILE as LEDGER
from lightning_s3t.store.registered_files import Located, RegisteredFiles, digest_of
from lightning_s3t.store.requests.journal import read_journal
from lightning_s3t.store.requests.scheduled import check_scheduled
from lightning_s3t.store.snapshots.snapshots import FOLDER
from lightning_s3t.store.units import parse_unit, read_units

_PATIENCE = 2.0  # seconds


@dataclass(frozen=True)
class Verification:
    """The result of checking a store.

    Attributes:
        problems: One sentence each; none is good.
        damaged: Units with a missing or changed snapshot.
        events: Number of checked events.
        units: Number of snapshots that were read.
        skipped: What could not be checked, and why.
        notes: Observations that are not errors: checkpoints that were removed by hand, or that belong to the store that
            this one is a copy of.
    """

    problems: tuple[str, ...]
    damaged: tuple[UnitId, ...]
    events: int
    units: int
    skipped: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(store: Backend, keyring: Keyring, quiet: bool) -> Verification:
    """Look at everything that a store has.

    Args:
        store: The store's backend.
        keyring: The store's keys.
        quiet: Whether no other process works on the store, so that every file in it must be accounted for.
    """
    ledger = store.ledger
    damaged = tuple(damaged_units(store))
    units = len(ledger.ages()) + len(ledger.aside())
    with ledger.at_one_time():  # other processes may make requests at the same time
        keyring.refresh()
        history = list(ledger.events())
        contents = [
            *_tombstones(ledger, keyring, history),
            *_outdated(ledger),
            *_set_aside(ledger),
            *_index(ledger),
        ]
    found = ledger.problems()
    files = RegisteredFiles(store.folder)
    owned = list(ledger.files())
    snapshots = store.snapshots.owned(file.path for file in owned)
    registered = {file: files.locate(file, read=True) for file in owned if file.path not in snapshots}
    problems = [
        *([f"The database is damaged: {'; '.join(found)}."] if found else ()),
        *_chain(ledger, store.folder, history),
        *_authenticity(store, keyring, history),
        *contents,
        *map(damage_problem, damaged),
        *_damaged_aside(store),
        *_base(store),
        *floor_problems(store),
        *_key(store.folder),
        *_changed(registered),
        *_taken_off(store, {file.path for file in registered}),
        *left_problems(store),
        *filter(None, [unerased(store), clear_begun(store) if quiet else ""]),
        *(_strangers(store, registered.values()) if quiet else ()),
    ]
    skipped = (
        ()
        if quiet
        else ("unregistered files were not checked, because a fit is running and its own files look the same",)
    )
    return Verification(tuple(problems), damaged, len(history), units, skipped, tuple(_lost(registered)))


def check_one_piece(ledger: Ledger, folder: Path) -> None:
    """Check that the ledger is of one piece; fast enough for every opening.

    A ledger.db that is restored next to the write-ahead log of another is a mixture of both, which SQLite does not
    detect: its newest event may exist while an earlier tombstone is missing.

    Args:
        ledger: The ledger.
        folder: The store.

    Raises:
        StoreError: It is not.
    """
    with ledger.at_one_time():
        total = ledger.forgotten_after(ledger.watermark())
        events, newest = ledger.count_events(), ledger.head()[0]
        problems = [*_outdated(ledger), *_set_aside(ledger)]
        cells = sum(len(parse_unit(name).prefix) for name in ledger.ages())  # a unit has a cell for each slice
        entries = ledger.count_index()
        found = ledger.count_forgotten()
        damage = ledger.problems(tombstones_only=True)
    if total is not None and found != total:
        problems.append(f"{found} people are forgotten, but the newest request says {total}.")
    if damage:
        problems.append(f"The tombstones are damaged: {damage[0]}.")
    if events != newest:
        problems.append(f"There are {events} events, but the newest is number {newest}.")
    if cells != entries:
        problems.append(f"The units have {cells} cells, but the index of what reaches them has {entries}.")
    if problems:
        advice = "Restore it from a backup, and leave the journal in place."
        if (folder / LEDGER).exists():
            advice = (
                f"If {LEDGER} was restored next to the {LEDGER}-wal of another, remove {LEDGER}-wal and {LEDGER}-shm "
                "and restore it again, with the journal left in place. Otherwise restore it from a backup."
            )
        raise StoreError(f"The ledger of the store {folder} is inconsistent: {problems[0]} Nothing is served. {advice}")


def damaged_units(store: Backend) -> Iterator[UnitId]:
    """Return the units with a missing or corrupted snapshot.

    Args:
        store: The store's backend.

    Raises:
        StoreError: The place of the snapshots cannot be read.
    """
    digests = store.ledger.digests()
    if digests and "base" in store.ledger.notes("base"):
        store.snapshots.check_place()  # the initial state, which is never erased, is there too
    for name, digest in digests.items():
        if not store.snapshots.is_whole(digest) and store.ledger.digests([name]).get(name) == digest:
            yield parse_unit(name)


def _chain(ledger: Ledger, folder: Path, history: list[Event]) -> Iterator[str]:
    broken = first_break(history)
    if broken is not None:
        yield (
            f"The chain of events is broken at position {broken}: this event or an earlier one was changed or removed."
        )
    try:
        copy = _copy_of(folder, len(history))
    except (OSError, StoreError) as error:
        yield f"The journal cannot be read: {error}"
        return
    for mine, theirs in zip(history, copy, strict=False):
        if mine != theirs:
            yield f"Ledger and journal disagree about event {mine.position}."
            return
    later = copy[len(history) :]  # requests since the look are in both
    if later and later != list(islice(ledger.events(after=len(history)), len(later))):
        yield (
            f"The ledger ends at event {len(history)}, the journal at {len(copy)}: it was restored or changed while "
            "it was open. Open the store again: the missing requests are then carried out."
        )
    if len(copy) < len(history):
        yield f"The journal ends at event {len(copy)}, the ledger at {len(history)}."


def _authenticity(store: Backend, keyring: Keyring, history: list[Event]) -> Iterator[str]:
    forged = list(store.authenticator.wrong_events(history))
    if forged:
        yield f"{len(forged)} events, the first at position {forged[0]}, were not written with the store's key."
    with store.ledger.at_one_time():
        changed = store.authenticator.changed()
    for what in changed:
        yield f"Changed without the store's key: {what}."
    try:
        check_scheduled(store, keyring)
        check_exports(store)
        read_units(store.ledger)
    except StoreError as error:
        yield str(error)


def _copy_of(folder: Path, events: int) -> list[Event]:
    # another process may have committed an event, and be about to add it
    deadline = time.monotonic() + _PATIENCE
    while len(copy := list(read_journal(folder))) < events and time.monotonic() < deadline:
        time.sleep(0.05)
    return copy


def _tombstones(ledger: Ledger, keyring: Keyring, history: Iterable[Event]) -> Iterator[str]:
    # request by request: the ledger must contain exactly what they say
    expected: dict[bytes, tuple[int, str]] = {}
    marks: set[Mark] = set()
    layers = 1
    for event in history:
        layers = layers_after(event, layers)
        try:
            change = change_of(event)
            if change is None:
                continue
            for hash_, number, cell in change.buried:
                expected.setdefault(keyring.renew(hash_, layers), (number, cell))
            marks -= {mark._replace(hash=keyring.renew(mark.hash, layers)) for mark in change.unmarked}
            marks |= {mark._replace(hash=keyring.renew(mark.hash, layers)) for mark in change.marked}
        except (LookupError, TypeError, ValueError):
            yield f"The request of event {event.position} cannot be read."
    found = {hash_: (request, cell) for hash_, request, cell in ledger.tombstones()}
    lost, strange = len(expected.keys() - found.keys()), len(found.keys() - expected.keys())
    changed = sum(found[hash_] != expected[hash_] for hash_ in expected.keys() & found.keys())
    if lost:
        yield f"{lost} tombstones are missing: people who were forgotten could be trained on again."
    if strange or changed:
        yield f"{strange + changed} tombstones do not belong to any request."
    again = ledger.count_registered_and_forgotten()
    if again:
        yield f"{again} forgotten subjects are registered as training data."
    wrong = marks ^ set(ledger.marks())
    if wrong:
        yield (f"{len(wrong)} records of restricted or corrected subjects are missing or do not belong to any request.")


def _outdated(ledger: Ledger) -> Iterator[str]:
    # by the units' names, not by the index that revokes them: it must be right too
    newest = ledger.newest_requests()
    for name, as_of in ledger.ages().items():
        for cell in parse_unit(name).cells:
            if newest.get(cell, 0) > as_of:
                yield (
                    f"Unit {name} was trained before request {newest[cell]}, which reaches slice "
                    f"{cell.rpartition('/')[2]} of its prefix: it must not serve."
                )
    for export in ledger.exports():
        request = max(newest.get(cell, 0) for cell in export.cells)
        if request > export.as_of:
            yield f"The exported copy {export.name} was made before request {request}, which reaches it."


def _set_aside(ledger: Ledger) -> Iterator[str]:
    gone, restricted = ledger.newest_requests(restrictions=False), dict[str, int]()
    for mark in ledger.marks("restricted"):
        restricted[mark.cell] = max(mark.number, restricted.get(mark.cell, 0))
    for one in ledger.aside():
        if one.cells != parse_unit(one.name).cells:
            yield f"The cells of unit {one.name}, which is set aside, are not those of its prefix."
        request = max(gone.get(cell, 0) for cell in parse_unit(one.name).cells)
        if request > one.as_of:
            yield f"Unit {one.name}, which is set aside, was trained before request {request}: it must not be kept."
        if all(restricted.get(cell, 0) <= one.as_of for cell in parse_unit(one.name).cells):
            yield f"Unit {one.name} is set aside, but no subject in its data is restricted."


def _damaged_aside(store: Backend) -> Iterator[str]:
    for one in store.ledger.aside():
        if not store.snapshots.is_whole(one.entry.digest) and one.id in {left.id for left in store.ledger.aside()}:
            yield f"The snapshot of unit {one.name}, which is set aside, is missing or damaged."


def _index(ledger: Ledger) -> Iterator[str]:
    wrong = {(cell, name) for name in ledger.ages() for cell in parse_unit(name).cells} ^ set(ledger.index())
    if wrong:
        yield f"The index of which cells reach which units has {len(wrong)} wrong entries: a request could miss a unit."


def _base(store: Backend) -> Iterator[str]:
    digest = store.ledger.notes("base").get("base")
    if digest is not None and not store.snapshots.is_whole(digest):
        yield (
            "The head's initial state is missing or damaged: a fit could not train anything. Restore it from a backup."
        )


def _key(folder: Path) -> Iterator[str]:
    path = folder / KEY_FILE
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield f"The key {path} is readable by other users: chmod 600."


def _changed(registered: Mapping[OwnedFile, Located]) -> Iterator[str]:
    for file, located in registered.items():
        if located.state == "changed":
            yield (
                f"{_name(file.path)} differs from the registered file: it was changed or replaced, and no request "
                "will erase it. Remove it by hand if it is a checkpoint of this store."
            )


def _taken_off(store: Backend, registered: Collection[str]) -> Iterator[str]:
    """Name checkpoints of serving units that no request would erase; units record the files that they wrote."""
    queued = {file.path for file in store.ledger.queued()}
    try:
        units = read_units(store.ledger)
    except StoreError:  # `_authenticity` says so
        return
    for unit, record in units.items():
        for file in record.provenance.get("files", ()):
            path = file["path"]
            if path in registered or path in queued or size_of(path) != file["bytes"]:
                continue
            if digest_of(path) == file["sha256"]:
                yield (
                    f"{_name(path)} was written by unit {unit} but is not registered with it: no request would erase "
                    "it. Remove it by hand."
                )


def damage_problem(unit: UnitId) -> str:
    """Return the message for a unit with a missing or corrupted snapshot.

    Args:
        unit: The unit.
    """
    return f"The snapshot of unit {unit} is missing or damaged."


def left_problems(store: Backend) -> Iterator[str]:
    """Name queued files that may not be the store's.

    Args:
        store: The store's backend.
    """
    for file in store.ledger.queued():
        if file.left:
            why = f"request {file.request}" if file.request is not None else "a unit that no longer exists"
            yield (
                f"{_name(file.path)} should have been erased with {why} but still exists: it was changed since, or "
                "the store was moved or copied and the file may belong to another store. Inspect it, and remove it "
                "by hand if it belongs to this store."
            )


def _lost(registered: Mapping[OwnedFile, Located]) -> Iterator[str]:
    missing = [file.path for file, located in registered.items() if located.state == "missing"]
    elsewhere = [file.path for file, located in registered.items() if located.state in ("elsewhere", "unproven")]
    if missing:
        yield f"{len(missing)} registered files are missing: {_shown(missing)}."
    if elsewhere:
        yield (
            f"{len(elsewhere)} registered files belong to the store that this one was copied or moved from: "
            f"{_shown(elsewhere)}. No request to this store erases them."
        )


def _shown(paths: list[str]) -> str:
    return ", ".join(map(_name, sorted(paths)[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _name(path: str) -> str:
    # text from a stranger must not control the terminal
    return path if path.isprintable() else repr(path)


def _strangers(store: Backend, registered: Iterable[Located]) -> Iterator[str]:
    names = {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if not path.is_dir()}
    names = {name for name in names if not name.startswith(f"{SCRATCH}/")}  # of an audit that is running
    names |= store.snapshots.names()  # which may be elsewhere
    snapshots = store.snapshots.owned(names)
    known = OWN_FILES | store.ledger.needed(snapshots)
    known |= {os.path.relpath(located.path, os.path.realpath(store.folder)) for located in registered if located.path}
    for name in sorted(names - known):
        where = "snapshots" if name.startswith(f"{FOLDER}/") else "the store"
        yield f"There is an unregistered file in {where}: {_name(name)}."
