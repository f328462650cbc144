"""A rehearsed restore: a backup of the ledger is opened next to the store, with its journal and keys."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from typing_extensions import override

from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.store.backend import Backend, open_ledger
from lightning_s3t.store.copies.copying import BEGUN, NOTE
from lightning_s3t.store.disk.journal_file import FILE as JOURNAL
from lightning_s3t.store.disk.journal_file import newest_event
from lightning_s3t.store.disk.lock import ledger_lock
from lightning_s3t.store.disk.scratch import Scratch
from lightning_s3t.store.heads.floor import read_states
from lightning_s3t.store.keys.identities import KEY_VARIABLE, read_keys, write_keys
from lightning_s3t.store.ledgers.address import parse_address, read_address, write_address
from lightning_s3t.store.ledgers.ledger import Ledger
from lightning_s3t.store.ledgers.sqlite import FILE as LEDGER
from lightning_s3t.store.snapshots.snapshots import Snapshots

_TRIES = 5  # to find ledger and journal at the same event
_SAME = "drill"  # the note that shows whether two addresses are one database


@dataclass(frozen=True)
class Drill:
    """The result of a rehearsed restore.

    Attributes:
        backup: The restored backup.
        backup_events: Number of events in its history.
        backup_time: The time of the newest of them; empty without events.
        events: Number of events in the store.
        replayed: Number of events that only the journal had, and that were carried out again.
        replayed_requests: Number of requests among these.
        forgotten: Number of forgotten people who were not forgotten in the backup.
        units: Number of units that serve today.
        restored_units: Number of these that would serve after the restore; the next fit trains the others.
        problems: What would be wrong after the restore; do not rely on a backup with problems.
        seconds: The duration of each step: "copy", "open", "verify".
    """

    backup: str
    backup_events: int = 0
    backup_time: str = ""
    events: int = 0
    replayed: int = 0
    replayed_requests: int = 0
    forgotten: int = 0
    units: int = 0
    restored_units: int = 0
    problems: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the backup, with the journal, would restore everything that was carried out."""
        return not self.problems


class ReadOnlySnapshots(Snapshots):
    """A read-only view of another store's snapshots, in which deletions are only simulated.

    Replayed requests subtract from closed-form heads; the new sums are kept in memory.

    Args:
        snapshots: Those of the store.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self.is_remote = snapshots.is_remote
        self._snapshots = snapshots
        self._deleted: set[str] = set()
        self._put: dict[str, bytes] = {}  # by name

    @override
    def name(self, digest: str) -> str:
        return self._snapshots.name(digest)

    @override
    def owned(self, names: Iterable[str]) -> set[str]:
        return self._snapshots.owned(names)

    @override
    def put(self, digest: str, data: bytes) -> None:
        name = self.name(digest)
        self._put[name] = data
        self._deleted.discard(name)

    @override
    def get(self, digest: str, what: str) -> bytes:
        return self._put.get(self.name(digest)) or self._snapshots.get(digest, what)

    @override
    def is_whole(self, digest: str) -> bool:
        name = self.name(digest)
        return name in self._put or (name not in self._deleted and self._snapshots.is_whole(digest))

    @override
    def check_place(self) -> None:
        self._snapshots.check_place()

    @override
    def names(self) -> set[str]:
        return self._snapshots.names() - self._deleted | self._put.keys()

    @override
    def size(self, name: str) -> int | None:
        return self.sizes([name])[name]

    @override
    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        found = self._snapshots.sizes(names)
        found |= dict.fromkeys(self._deleted & found.keys())
        return found | {name: len(data) for name, data in self._put.items() if name in found}

    @override
    def delete(self, names: Iterable[str]) -> dict[str, OSError]:
        gone = self.owned(names)
        self._deleted |= gone
        self._put = {name: data for name, data in self._put.items() if name not in gone}
        return {}


@dataclass(frozen=True)
class Today:
    """The state of a store at one moment, to compare a restored one with.

    Attributes:
        position: That of its newest event.
        digest: That event's.
        tombstones: Everybody who is forgotten.
        digests: The units that serve, and the digests of their snapshots.
        heads: The digests of the snapshots of closed-form heads.
    """

    position: int
    digest: str
    tombstones: frozenset[tuple[bytes, int, str]]
    digests: dict[str, str]
    heads: frozenset[str]


def prepare(store: Backend, backup: str, scratch: Scratch) -> tuple[Backend, Today]:
    """Create a store next to another from a backup of its ledger, its journal and its keys.

    Args:
        store: The store's backend.
        backup: A ledger.db, a folder with one, or the address of a schema that was restored from a backup.
        scratch: Where to create it.

    Raises:
        ConfigurationError: The backup does not exist, or is the store's own ledger.
        StoreError: The backup cannot be opened.
    """
    folder = scratch.path / "store"
    folder.mkdir(mode=0o700)
    (folder / "snapshots").mkdir(mode=0o700)
    today = _copy_journal(store, folder)
    if KEY_VARIABLE not in os.environ:
        write_keys(folder, read_keys(store.folder))
    if backup.startswith(("postgresql:", "postgres:")):
        _name_ledger(store, folder, backup)
    else:
        _copy_ledger(store, folder, Path(backup))
    ledger = open_ledger(folder)
    try:
        if read_address(folder) is not None and _is_one(store.ledger, ledger):
            raise ConfigurationError(
                f"{backup} is the store's own ledger. Expected a schema in another database, restored from a backup."
            )
        with ledger.transaction():
            ledger.note({NOTE: "", BEGUN: ""})
    except BaseException:
        ledger.close()
        raise
    return Backend(folder, ledger, ReadOnlySnapshots(store.snapshots)), today


def count_backup(found: Drill, backup: Ledger, ledger: Ledger, today: Today) -> Drill:
    """Count what a backup has, and what the journal adds to it, before the restored store is opened.

    Args:
        found: The result so far.
        backup: The ledger as it was restored.
        ledger: The store's own.
        today: The state of the store.
    """
    position = backup.head()[0]
    newest = next(backup.events(after=position - 1), None) if position else None
    missing = [event for event in ledger.events(after=position) if event.position <= today.position]
    return replace(
        found,
        backup_events=position,
        backup_time=newest.time if newest is not None else "",
        events=today.position,
        replayed=len(missing),
        replayed_requests=sum(event.kind == "request" for event in missing),
        forgotten=max(len(today.tombstones) - backup.count_forgotten(), 0),
        units=len(today.digests),
    )


def compare(restored: Backend, today: Today) -> list[str]:
    """Return what a restored store is missing compared with the original, and what it must not have.

    Args:
        restored: The backend of the restored store, after it was opened.
        today: The state of the original.
    """
    ledger = restored.ledger
    problems = []
    if today.position and ledger.digest_at(today.position) != today.digest:
        problems.append(f"The restored history would differ from the store's at event {today.position}.")
    lost = today.tombstones - set(ledger.tombstones())
    if lost:
        problems.append(f"{len(lost)} forgotten people would no longer be forgotten.")
    return problems


def _copy_journal(store: Backend, folder: Path) -> Today:
    """Copy the journal when it is up to date with the ledger; return the store's state at that moment."""
    for _ in range(_TRIES):
        with ledger_lock(store.folder), store.ledger.at_one_time():
            head = store.ledger.head()
            newest = newest_event(store.folder)
            if (newest.position if newest is not None else 0) == head[0]:
                shutil.copyfile(store.folder / JOURNAL, folder / JOURNAL)
                (folder / JOURNAL).chmod(0o600)
                heads = {digest for one in read_states(store).values() for digest in (one.digest, one.published)}
                return Today(
                    *head, frozenset(store.ledger.tombstones()), store.ledger.digests(), frozenset(filter(None, heads))
                )
        time.sleep(0.1)
    raise StoreError(f"Requests to the store {store.folder} come faster than its journal can be copied. Try again.")


def _copy_ledger(store: Backend, folder: Path, backup: Path) -> None:
    if read_address(store.folder) is not None:
        raise ConfigurationError(
            f"The ledger of the store {store.folder} is in PostgreSQL. Expected the address of a schema in another "
            f"database, restored from a backup, but got {backup}."
        )
    file = backup / LEDGER if backup.is_dir() else backup
    if not file.is_file():
        raise ConfigurationError(f"There is no backup at {file}. Expected a {LEDGER}, or a folder with one.")
    if file.resolve() == (store.folder / LEDGER).resolve():
        raise ConfigurationError(f"{file} is the store's own ledger, not a backup of it.")
    shutil.copyfile(file, folder / LEDGER)
    (folder / LEDGER).chmod(0o600)
    log = file.with_name(f"{file.name}-wal")
    if log.is_file():
        shutil.copyfile(log, folder / f"{LEDGER}-wal")


def _name_ledger(store: Backend, folder: Path, backup: str) -> None:
    address = read_address(store.folder)
    if address is None:
        raise ConfigurationError(
            f"The ledger of the store {store.folder} is in its folder. Expected a backup of {LEDGER}, but got {backup}."
        )
    parsed = parse_address(backup)
    if parsed == (address.url, address.schema):
        raise ConfigurationError(
            f"{backup} is the store's own ledger. Expected a schema in another database, restored from a backup."
        )
    write_address(folder, *parsed, address.id)


def _is_one(live: Ledger, restored: Ledger) -> bool:
    """Return whether two ledgers are one, whatever their addresses are called."""
    token = uuid.uuid4().hex
    try:
        with live.transaction():
            live.note({_SAME: token})
        return restored.notes(_SAME).get(_SAME) == token
    finally:
        with live.transaction():
            live.note({_SAME: ""})
