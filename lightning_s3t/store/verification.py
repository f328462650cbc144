"""Verification: whether a store is what its history says."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import Place, UnitId
from lightning_s3t.store.chain import Event, first_break, read_events
from lightning_s3t.store.erasure import needed_files
from lightning_s3t.store.files import sha256_of
from lightning_s3t.store.folder import OWN_FILES
from lightning_s3t.store.identities import KEY_FILE
from lightning_s3t.store.journal import read_journal
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import FILE as LEDGER
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.snapshots import FOLDER, snapshot_name
from lightning_s3t.store.tombstones import told_total
from lightning_s3t.store.units import newest_request, read_snapshots

_PATIENCE = 2.0  # seconds


@dataclass(frozen=True)
class Verification:
    """What a look at a store has found.

    Attributes:
        problems: One sentence each; none is good.
        damaged: Units whose snapshot is missing or changed.
        events: How many events were walked.
        units: How many snapshots were read.
        skipped: What could not be looked at, and why.
    """

    problems: tuple[str, ...]
    damaged: tuple[UnitId, ...]
    events: int
    units: int
    skipped: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(ledger: Ledger, folder: Path, keyring: Keyring, quiet: bool) -> Verification:
    """Looks at everything that a store has.

    Args:
        ledger: The ledger.
        folder: The store.
        keyring: The store's keys.
        quiet: Whether nobody else is at work on the store, so that every file in it has to be accounted for.
    """
    damaged = tuple(damaged_units(ledger, folder))
    snapshots = read_snapshots(ledger)
    with ledger.at_one_time():  # requests of other processes go on meanwhile
        keyring.refresh()
        history = list(read_events(ledger))
        contents = [*_tombstones(ledger, keyring, history), *_revoked(ledger)]
    problems = [
        *_database(ledger),
        *_chain(ledger, folder, history),
        *contents,
        *(f"The snapshot of unit {unit} is missing or damaged." for unit in damaged),
        *_base(ledger, folder),
        *_key(folder),
        *(_strangers(ledger, folder) if quiet else ()),
    ]
    skipped = () if quiet else ("files that nobody has registered: a fit is running, whose own look the same",)
    return Verification(tuple(problems), damaged, len(history), len(snapshots), skipped)


def check_one_piece(ledger: Ledger, folder: Path) -> None:
    """Checks that the ledger is of one piece; fast enough for every opening.

    A ledger.db that is restored beside the write-ahead log of another is partly the one, partly the other, and SQLite
    does not notice: its newest event may be there, and a tombstone from before be gone.

    Args:
        ledger: The ledger.
        folder: The store.

    Raises:
        StoreError: It is not.
    """
    connection = ledger.connection
    with ledger.at_one_time():
        total = told_total(connection, newest_request(ledger))
        events = connection.execute("SELECT COUNT(*), COALESCE(MAX(position), 0) FROM events").fetchone()
        problems = list(_revoked(ledger))
        found = connection.execute("SELECT COUNT(*) FROM tombstones").fetchone()[0]
        state = connection.execute("PRAGMA integrity_check('tombstones')").fetchone()[0]
    if total is not None and found != total:
        problems.append(f"{found} people are forgotten, and the newest request says {total}.")
    if state != "ok":
        problems.append(f"The tombstones are damaged: {state}.")
    if events[0] != events[1]:
        problems.append(f"There are {events[0]} events, and the newest is number {events[1]}.")
    if problems:
        raise StoreError(
            f"The ledger of the store {folder} is not of one piece: {problems[0]} Nothing is served. If {LEDGER} was "
            f"restored beside the {LEDGER}-wal of another, remove {LEDGER}-wal and {LEDGER}-shm and restore it once "
            "more, with the journal left there; else restore it from a backup."
        )


def damaged_units(ledger: Ledger, folder: Path) -> Iterator[UnitId]:
    """Returns the units whose snapshot is not what was written.

    Args:
        ledger: The ledger.
        folder: The store.

    Raises:
        StoreError: The disk cannot be read.
    """
    snapshots, base = read_snapshots(ledger), ledger.get("base")
    if snapshots and base is not None and (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        raise StoreError(_elsewhere_message(folder / FOLDER, "empty"))  # the start of all, which is never erased, too
    for unit, digest in snapshots.items():
        if not _is_whole(folder / snapshot_name(digest), digest) and read_snapshots(ledger).get(unit) == digest:
            yield unit


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return sha256_of(path) == digest
    except FileNotFoundError:
        if path.parent.is_dir():
            return False
        raise StoreError(_elsewhere_message(path.parent, "missing")) from None
    except OSError as error:  # a disk that cannot be read now may be read later: nothing is given up for that
        raise StoreError(
            f"The snapshot {path} cannot be read: {error.strerror}. Remove the cause, and try again."
        ) from error


def _elsewhere_message(folder: Path, what: str) -> str:
    return (
        f"The folder {folder} is {what}. If it lies on a disk of its own, mount it; else restore it from a backup. "
        "Nothing is given up for that."
    )


def _database(ledger: Ledger) -> Iterator[str]:
    found = [row[0] for row in ledger.connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        yield f"The database is damaged: {'; '.join(found)}."


def _chain(ledger: Ledger, folder: Path, history: list[Event]) -> Iterator[str]:
    broken = first_break(history)
    if broken is not None:
        yield f"The chain of events is broken at position {broken}: it, or what is before it, was changed or removed."
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
    if later and later != list(islice(read_events(ledger, after=len(history)), len(later))):
        yield (
            f"The ledger ends at event {len(history)}, the journal at {len(copy)}: it was restored or changed while it "
            "was open. Open the store again: what it lacks is then carried out."
        )
    if len(copy) < len(history):
        yield f"The journal ends at event {len(copy)}, the ledger at {len(history)}."


def _copy_of(folder: Path, events: int) -> list[Event]:
    # another process may have committed an event, and be about to add it
    deadline = time.monotonic() + _PATIENCE
    while len(copy := list(read_journal(folder))) < events and time.monotonic() < deadline:
        time.sleep(0.05)
    return copy


def _tombstones(ledger: Ledger, keyring: Keyring, history: Iterable[Event]) -> Iterator[str]:
    # one request after the other: what is in the ledger must be what they say, no more and no less
    expected: dict[bytes, tuple[int, int, int]] = {}
    for event in history:
        try:
            for hash_, shard, slice_ in event.body["tombstones"] if event.kind == "request" else []:
                renewed = keyring.renew(bytes.fromhex(hash_), event.body["layers"])
                expected.setdefault(renewed, (event.request or 0, shard, slice_))
        except (LookupError, TypeError, ValueError):
            yield f"The request of event {event.position} cannot be read."
    found = {row[0]: row[1:] for row in ledger.connection.execute("SELECT hash, request, shard, slice FROM tombstones")}
    lost, strange = len(expected.keys() - found.keys()), len(found.keys() - expected.keys())
    changed = sum(found[hash_] != expected[hash_] for hash_ in expected.keys() & found.keys())
    if lost:
        yield f"{lost} tombstones are missing: people who were forgotten could be trained on again."
    if strange or changed:
        yield f"{strange + changed} tombstones are there that no request explains."
    again = ledger.connection.execute("SELECT COUNT(*) FROM subjects JOIN tombstones USING (hash)").fetchone()[0]
    if again:
        yield f"{again} forgotten subjects are registered as training data."


def _revoked(ledger: Ledger) -> Iterator[str]:
    newest = {
        Place(shard, slice_): request
        for shard, slice_, request in ledger.connection.execute(
            "SELECT shard, slice, MAX(request) FROM tombstones GROUP BY shard, slice"
        )
    }
    for text, as_of in ledger.connection.execute("SELECT unit, as_of FROM units"):
        unit = UnitId.parse(text)
        for place in (Place(unit.shard, slice_) for slice_ in unit.prefix):
            if newest.get(place, 0) > as_of:
                yield (
                    f"Unit {unit} was trained before request {newest[place]}, which reaches slice {place.slice} of its "
                    "prefix: it must not serve."
                )


def _base(ledger: Ledger, folder: Path) -> Iterator[str]:
    digest = ledger.get("base")
    if digest is not None and not _is_whole(folder / snapshot_name(digest), digest):
        yield "The head's start is missing or damaged: a fit could not train anything anew. Restore it from a backup."


def _key(folder: Path) -> Iterator[str]:
    path = folder / KEY_FILE
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield f"The key {path} can be read by others: chmod 600."


def _strangers(ledger: Ledger, folder: Path) -> Iterator[str]:
    needed = needed_files(ledger.connection)
    registered = {row[0] for row in ledger.connection.execute("SELECT path FROM files")}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in OWN_FILES or name in needed or str(path.resolve()) in registered:
            continue
        where = "snapshots" if name.startswith(f"{FOLDER}/") else "the store"
        yield f"A file lies in {where} that nobody has registered: {name}."
