"""A ledger in SQLite: one file next to the snapshots, for any number of processes on one machine."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from typing_extensions import override

from lightning_s3t.core.documents import canonical
from lightning_s3t.core.events import Event, Kind
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import LedgerUnreachableError, MovedError, StoreError
from lightning_s3t.store.ledgers.ledger import (
    UNDECODABLE,
    Artifact,
    ArtifactEntry,
    Export,
    Mark,
    OwnedFile,
    QueuedFile,
    SetAside,
    Tombstone,
    ledger_errors,
    undecodable,
)
from lightning_s3t.store.ledgers.sql import SqlLedger, owner_aside, owner_of_attempt, owner_of_export, parse_body

FILE = "ledger.db"
FORMAT = 7
_MOVED = "moved_to"  # the note of a retired store
_NO_REQUEST = 1 << 62  # the number of the newest request of such a store
_PATIENCE = 30  # seconds
_CACHE = 65_536  # KiB: the rows of a registry are in the order of their hashes, which is random
_CACHE_OF_TRANSACTION = 262_144  # KiB, and only as much as it changes: beyond it, pages are written twice
_CHUNK = 500  # well under SQLite's limit on variables
_MUCH = 1000  # rows of the vault: below, compacting gains nothing

_SCHEMA = """
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- who is in the training data: keyed hashes only, with the band of risk and the generation that the cell depends on
CREATE TABLE subjects (
    hash BLOB PRIMARY KEY,
    band INTEGER NOT NULL,
    generation INTEGER NOT NULL
) WITHOUT ROWID;
-- what has taken units away, as a chain. Of a request: how many are forgotten after it, and the name that its caller
-- has given it, which its body says too
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    request INTEGER,
    time TEXT NOT NULL,
    body TEXT NOT NULL,
    digest TEXT NOT NULL,
    mac TEXT NOT NULL,
    forgotten INTEGER,
    name TEXT
);
CREATE INDEX events_by_request ON events (request);
CREATE INDEX events_by_name ON events (name) WHERE name IS NOT NULL;
-- who must never be trained on again: the cell says which artifacts a request reaches
CREATE TABLE tombstones (hash BLOB PRIMARY KEY, request INTEGER NOT NULL, cell TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstones_by_cell ON tombstones (cell, request);
-- what is noted of those who stay: who is restricted, whose data was corrected, and since when
CREATE TABLE marks (
    kind TEXT NOT NULL,
    hash BLOB NOT NULL,
    number INTEGER NOT NULL,
    cell TEXT NOT NULL,
    PRIMARY KEY (hash, kind, number)
) WITHOUT ROWID;
CREATE INDEX marks_by_cell ON marks (cell, kind, number);
-- who has asked to be forgotten later on
CREATE TABLE pending (hash BLOB PRIMARY KEY, due TEXT NOT NULL, cell TEXT NOT NULL) WITHOUT ROWID;
-- replicas that may answer for some seconds without a look, and the newest request that each knows of
CREATE TABLE replicas (id TEXT PRIMARY KEY, max_staleness REAL NOT NULL, request INTEGER NOT NULL) WITHOUT ROWID;
-- what must be unreadable once it is removed: of an artifact its digest, its score and the SHA-256 of its record
-- (head), the record, which is key and provenance (body), of a file its path (head) and what it is known by (body)
CREATE TABLE vault (id INTEGER PRIMARY KEY, head BLOB NOT NULL, body BLOB NOT NULL);
-- as_of is the newest request when the data was chosen
CREATE TABLE artifacts (
    name TEXT PRIMARY KEY,
    as_of INTEGER NOT NULL,
    record INTEGER NOT NULL,
    cells TEXT NOT NULL,
    mac TEXT NOT NULL
) WITHOUT ROWID;
-- the reach rule as an index: every cell whose data has influenced an artifact, as artifacts.cells lists them
CREATE TABLE cells (cell TEXT, artifact TEXT, PRIMARY KEY (cell, artifact)) WITHOUT ROWID;
-- artifacts that a restriction keeps from serving: of one name there may be several. Their files are under 'aside:id'
CREATE TABLE set_aside (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    as_of INTEGER NOT NULL,
    record INTEGER NOT NULL,
    cells TEXT NOT NULL,
    mac TEXT NOT NULL
);
CREATE TABLE attempts (name TEXT PRIMARY KEY) WITHOUT ROWID;
-- exported copies: few, so that the reach rule is asked of each
CREATE TABLE exports (name TEXT PRIMARY KEY, as_of INTEGER NOT NULL, cells TEXT NOT NULL) WITHOUT ROWID;
-- the files of artifacts, attempts and exported copies, found by a keyed hash of their path
CREATE TABLE files (owner TEXT, tag BLOB, path INTEGER NOT NULL, PRIMARY KEY (owner, tag)) WITHOUT ROWID;
CREATE INDEX files_by_tag ON files (tag);
-- integer features of rows, for a closed-form head: kept like the vault, and found by their subjects' hashes
CREATE TABLE features (id INTEGER PRIMARY KEY, body BLOB NOT NULL, mac BLOB NOT NULL);
CREATE TABLE feature_rows (
    source INTEGER NOT NULL,
    hash BLOB NOT NULL,
    id INTEGER NOT NULL,
    tag BLOB NOT NULL,
    PRIMARY KEY (source, hash, id)
) WITHOUT ROWID;
CREATE TABLE feature_sources (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- what is to be erased, with its size: a crash must not make a receipt forget a file
CREATE TABLE erasures (
    path TEXT PRIMARY KEY,
    request INTEGER,
    bytes INTEGER,
    evidence TEXT NOT NULL,
    left_alone INTEGER NOT NULL
) WITHOUT ROWID;
"""
_FORM = "SELECT type, name, sql FROM sqlite_master"
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_AMONG = "(SELECT value FROM json_each(?))"  # one parameter, however many values


def _decoding(what: str) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Convert the errors of a method that decodes rows: wraps it in `ledger_errors`."""

    def decorate(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        @functools.wraps(method)
        def decoded(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
            try:
                return method(*args, **kwargs)
            except StoreError:
                raise
            except UNDECODABLE as error:
                raise undecodable(what, error) from error

        return decoded

    return decorate


class SqliteLedger(SqlLedger):
    """A store's database, with a connection for each thread of each process.

    SQLite clears deleted values (`secure_delete`), but not the copies that it leaves in a page when it moves rows to
    another page to balance a tree. So values that must become unreadable are in a separate table, the vault, in which
    rows never move: they are appended, and overwritten with zeros in place instead of being deleted. The cost of a
    request then depends on what it reaches, not on the size of the store.

    Args:
        folder: The store.
        create: Create the database if it does not exist.

    Raises:
        StoreError: There is none, or it is not a ledger of this format.
    """

    keeps_features = True
    _value = "?"
    _among = f"IN {_AMONG}"

    def __init__(self, folder: Path, create: bool = False) -> None:
        super().__init__(folder)
        self._path = folder / FILE
        # by process and thread: a connection must not be carried over a fork, and has one transaction at a time
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        self._is_closed = False
        _check_writable(folder)
        if create:  # SQLite gives the files next to it the same permissions
            # an existing file must not be opened here: closing it would end the locks of this process's connections
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        elif not self._path.is_file():
            raise StoreError(
                f"There is no store at {folder}: {FILE} is missing. Train one with the S3T callback first."
            )
        try:
            self._check_format(create)
        except BaseException:
            self.close()
            raise

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        owner = (os.getpid(), threading.get_ident())
        found = self._connections.get(owner)
        if self._is_closed:
            raise StoreError(f"The store {self._folder} is closed. Open it again.")
        if found is None:
            found = self._connections[owner] = _connect(self._path)
        return found

    @contextmanager
    @override
    def transaction(self) -> Iterator[None]:
        with self._block():
            self._check_here()
            yield

    @contextmanager
    def _block(self) -> Iterator[None]:
        connection = self.connection
        try:
            connection.execute(f"PRAGMA cache_size = -{_CACHE_OF_TRANSACTION}")
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("COMMIT")
            connection.execute(f"PRAGMA cache_size = -{_CACHE}")
        except BaseException as error:
            # SQLite has ended it itself when the disk was full, or when another thread has closed the ledger
            with suppress(sqlite3.ProgrammingError):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute(f"PRAGMA cache_size = -{_CACHE}")
            cause = error.__cause__ if isinstance(error, StoreError) else None
            if isinstance(cause, (sqlite3.OperationalError, OSError)):
                raise LedgerUnreachableError(
                    f"The store {self._folder} could not be written ({cause}). Nothing was changed. Wait for the "
                    "other process to end, or free disk space, and try again."
                ) from cause
            raise

    @contextmanager
    @override
    def at_one_time(self) -> Iterator[None]:
        connection = self.connection
        connection.execute("BEGIN")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")

    @override
    def close(self) -> None:
        process = os.getpid()
        self._is_closed = True
        for owner in [owner for owner in self._connections if owner[0] == process]:
            self._connections.pop(owner).close()

    @override
    def notes(self, *names: str) -> dict[str, str]:
        marks = ",".join("?" * len(names))
        return dict(self._rows(f"SELECT name, value FROM notes WHERE name IN ({marks})", *names))

    @override
    def note(self, notes: Mapping[str, str]) -> None:
        self._many("INSERT OR REPLACE INTO notes VALUES (?, ?)", notes.items())

    @override
    def register(self, rows: Iterable[tuple[bytes, int]], generation: int = 0) -> None:
        self._many(
            f"INSERT OR IGNORE INTO subjects SELECT ?1, ?2, {int(generation)} "
            "WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE hash = ?1)",
            rows,
        )

    @override
    def merge_generations(self, into: int) -> None:
        self.connection.execute("UPDATE subjects SET generation = ?1 WHERE generation > ?1", (into,))

    @override
    def schedule(self, rows: Iterable[tuple[bytes, str, Cell]]) -> None:
        self._many(
            "INSERT INTO pending SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE hash = ?1) "
            "ON CONFLICT (hash) DO UPDATE SET due = min(due, excluded.due), cell = excluded.cell",
            rows,
        )

    @override
    def unschedule(self, hashes: Iterable[bytes]) -> None:
        self._many("DELETE FROM pending WHERE hash = ?", ((hash_,) for hash_ in hashes))

    @override
    def bury(self, rows: Iterable[Tombstone], request: int) -> None:
        found = sorted(rows)  # in the order of the tree: neighbours are on one page
        self._many(
            "INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?)", ((hash_, request, cell) for hash_, cell in found)
        )
        waiting = bool(self._rows("SELECT 1 FROM pending LIMIT 1"))
        for table in ("subjects", "pending") if waiting else ("subjects",):
            self._many(f"DELETE FROM {table} WHERE hash = ?", ((hash_,) for hash_, _ in found))

    @override
    def mark(self, marks: Iterable[Mark]) -> None:
        self._many("INSERT OR IGNORE INTO marks VALUES (?, ?, ?, ?)", marks)

    @override
    def unmark(self, marks: Iterable[Mark]) -> None:
        rows = ((mark.hash, mark.kind, mark.number) for mark in marks)
        self._many("DELETE FROM marks WHERE hash = ? AND kind = ? AND number = ?", rows)

    @override
    def rehash(self, renew: Callable[[bytes], bytes]) -> None:
        self.connection.create_function("renewed", 1, renew)
        for table in ("subjects", "tombstones", "marks", "pending", "feature_rows"):
            self.connection.execute(f"UPDATE {table} SET hash = renewed(hash)")

    @override
    def append(self, event: Event, forgotten: int | None = None) -> None:
        start = (event.position, event.kind, event.request, event.time, canonical(event.body))
        row = (*start, event.digest, event.mac, forgotten, event.body.get("request_id"))
        self.connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    @override
    def events(
        self, after: int = 0, request: int | None = None, kinds: Collection[Kind] | None = None
    ) -> Iterator[Event]:
        chosen, values = "", list[Any]([after])
        if request is not None:
            chosen, values = "AND request = ?", [after, request]
        if kinds is not None:
            chosen, values = f"{chosen} AND kind IN {_AMONG}", [*values, _list(kinds)]
        query = "SELECT position, kind, request, time, body, digest, mac FROM events WHERE position > ?"
        for position, kind, number, time, body, digest, mac in self.connection.execute(
            f"{query} {chosen} ORDER BY position", values
        ):
            yield Event(position, kind, number, time, parse_body(body), digest, mac)

    @override
    def request_digests(self, requests: Collection[int]) -> dict[int, str]:
        query = f"SELECT request, digest FROM events WHERE request IN {_AMONG} AND kind = 'request'"
        return dict(self._rows(query, json.dumps(list(requests))))

    @override
    def watermark(self) -> int:
        found = self._number("SELECT MAX(request) FROM events")
        if found == _NO_REQUEST:
            self._check_here()
        return found

    @override
    def add_replica(self, replica: str, max_staleness: float, request: int) -> None:
        self.connection.execute("INSERT OR REPLACE INTO replicas VALUES (?, ?, ?)", (replica, max_staleness, request))

    @override
    def look(self, replica: str) -> tuple[int, int | None]:
        query = "SELECT (SELECT MAX(request) FROM events), (SELECT request FROM replicas WHERE id = ?)"
        ((newest, known),) = self._rows(query, replica)
        if newest == _NO_REQUEST:
            self._check_here()
        return newest or 0, known

    @override
    def confirm(self, replica: str, request: int) -> bool:
        query = "UPDATE replicas SET request = max(request, ?) WHERE id = ?"
        return self.connection.execute(query, (request, replica)).rowcount > 0

    @override
    def remove_replicas(self, replicas: Collection[str], behind: int | None = None) -> None:
        query = f"DELETE FROM replicas WHERE id IN {_AMONG} AND (? IS NULL OR request < ?)"
        self.connection.execute(query, (_list(replicas), behind, behind))

    @override
    def add(self, artifact: Artifact, snapshot: str) -> None:
        name, attempt = artifact.name, owner_of_attempt(artifact.name)
        score = "" if artifact.score is None else repr(float(artifact.score))
        head = f"{artifact.digest}\n{score}\n{artifact.record}"
        record = self._keep(head, json.dumps([artifact.key, artifact.provenance]))
        self.connection.execute(
            "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?)",
            (name, artifact.as_of, record, _list(artifact.cells), artifact.mac),
        )
        self._many("INSERT INTO cells VALUES (?, ?)", ((cell, name) for cell in artifact.cells))
        self.connection.execute("UPDATE files SET owner = ? WHERE owner = ?", (name, attempt))
        tag = self._tag(snapshot)
        if not self._rows("SELECT 1 FROM files WHERE owner = ? AND tag = ?", name, tag):  # the attempt may have held it
            self.connection.execute("INSERT INTO files VALUES (?, ?, ?)", (name, tag, self._keep(snapshot)))
        self.connection.execute("DELETE FROM attempts WHERE name = ?", (name,))

    @override
    def remove(self, names: Collection[str]) -> list[OwnedFile]:
        files = self._disown(names, f"SELECT record FROM artifacts WHERE name IN {_AMONG}")
        self._take_out(names)
        return files

    @override
    @_decoding("The score of a unit")
    def scores(self, prefix: str = "") -> dict[str, float | None]:
        # a range, which the primary key finds
        query = "SELECT name, head FROM artifacts JOIN vault ON id = record"
        rows = self._rows(f"{query} WHERE name >= ?1 AND name < ?1 || char(0x10ffff)", prefix)
        return {name: _score(head) for name, head in rows}

    @override
    @_decoding("The digest of a unit")
    def digests(self, names: Collection[str] | None = None) -> dict[str, str]:
        query = "SELECT name, head FROM artifacts JOIN vault ON id = record"
        rows = self._rows(query) if names is None else self._rows(f"{query} WHERE name IN {_AMONG}", _list(names))
        return {name: _digest(head) for name, head in rows}

    @override
    @_decoding("The record of a unit")
    def artifacts(self, names: Collection[str] | None = None) -> list[Artifact]:
        query = "SELECT name, head, body, as_of, mac FROM artifacts JOIN vault ON id = record"
        rows = self._rows(query) if names is None else self._rows(f"{query} WHERE name IN {_AMONG}", _list(names))
        found = [
            (Artifact(name, (), key, _digest(head), _score(head), provenance, as_of, mac), _record(head))
            for name, head, body, as_of, mac in rows
            for key, provenance in [json.loads(body)]
        ]
        for artifact, record in found:
            if artifact.record != record:
                raise ValueError(f"unit {artifact.name} does not match what was written")
        return [artifact for artifact, _ in found]

    @override
    @_decoding("The record of a unit")
    def entries(self, names: Collection[str] | None = None) -> list[ArtifactEntry]:
        query = "SELECT name, head, as_of, mac FROM artifacts JOIN vault ON id = record"
        rows = self._rows(query) if names is None else self._rows(f"{query} WHERE name IN {_AMONG}", _list(names))
        return [
            ArtifactEntry(name, as_of, _digest(head), _score(head), _record(head), mac)
            for name, head, as_of, mac in rows
        ]

    @override
    def seal(self, macs: Mapping[str, str]) -> None:
        self._many("UPDATE artifacts SET mac = ? WHERE name = ?", ((mac, name) for name, mac in macs.items()))

    @override
    def set_aside(self, names: Collection[str]) -> None:
        copied = "INSERT INTO set_aside SELECT NULL, name, as_of, record, cells, mac FROM artifacts"
        for name in names:
            place = self.connection.execute(f"{copied} WHERE name = ?", (name,)).lastrowid
            self.connection.execute("UPDATE files SET owner = ? WHERE owner = ?", (owner_aside(place), name))
        self._take_out(names)

    @override
    @_decoding("A unit that is set aside")
    def aside(self) -> list[SetAside]:
        query = "SELECT set_aside.id, name, head, as_of, cells, mac FROM set_aside JOIN vault ON vault.id = record"
        return [
            SetAside(
                place,
                tuple(json.loads(cells)),
                ArtifactEntry(name, as_of, _digest(head), _score(head), _record(head), mac),
            )
            for place, name, head, as_of, cells, mac in self._rows(f"{query} ORDER BY set_aside.id")
        ]

    @override
    def put_back(self, ids: Collection[int]) -> None:
        for place in ids:
            chosen = "FROM set_aside WHERE id = ?"
            ((name, cells),) = self._rows(f"SELECT name, cells {chosen}", place)
            self.connection.execute(f"INSERT INTO artifacts SELECT name, as_of, record, cells, mac {chosen}", (place,))
            self._many("INSERT INTO cells VALUES (?, ?)", ((cell, name) for cell in json.loads(cells)))
            self.connection.execute("UPDATE files SET owner = ? WHERE owner = ?", (name, owner_aside(place)))
            self.connection.execute(f"DELETE {chosen}", (place,))

    @override
    def remove_aside(self, ids: Collection[int]) -> list[OwnedFile]:
        owners = [owner_aside(place) for place in ids]
        files = self._disown(owners, f"SELECT record FROM set_aside WHERE 'aside:' || id IN {_AMONG}")
        self._do(f"DELETE FROM set_aside WHERE 'aside:' || id IN {_AMONG}", _list(owners))
        return files

    @override
    def seal_aside(self, macs: Mapping[int, str]) -> None:
        self._many("UPDATE set_aside SET mac = ? WHERE id = ?", ((mac, place) for place, mac in macs.items()))

    @override
    def begin(self, name: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO attempts VALUES (?)", (name,))

    @override
    def hold(self, path: str, attempt: str) -> None:
        owner, tag = owner_of_attempt(attempt), self._tag(path)
        if not self._rows("SELECT 1 FROM files WHERE owner = ? AND tag = ?", owner, tag):
            self.connection.execute("INSERT INTO files VALUES (?, ?, ?)", (owner, tag, self._keep(path)))

    @override
    def disown(self, path: str) -> list[str]:
        tag = self._tag(path)
        owned = bool(self._rows("SELECT 1 FROM files WHERE tag = ?", tag))
        self._wipe("SELECT path FROM files WHERE tag = ?", tag)
        self.connection.execute("DELETE FROM files WHERE tag = ?", (tag,))
        return [path] if owned else []

    @override
    def files_of(self, attempt: str) -> list[OwnedFile]:
        query = "SELECT head, body FROM vault WHERE id IN (SELECT path FROM files WHERE owner = ?)"
        return [_owned(*row) for row in self._rows(query, owner_of_attempt(attempt))]

    @override
    def files(self) -> Iterator[OwnedFile]:
        query = "SELECT head, body FROM vault WHERE id IN (SELECT path FROM files)"
        yield from (_owned(*row) for row in self.connection.execute(query))

    @override
    def add_export(self, export: Export, files: Mapping[str, str]) -> None:
        row = (export.name, export.as_of, _list(export.cells))
        self.connection.execute("INSERT OR REPLACE INTO exports VALUES (?, ?, ?)", row)
        for path, evidence in files.items():
            self._give(path, owner_of_export(export.name), evidence)

    @override
    @_decoding("An exported copy")
    def exports(self) -> list[Export]:
        rows = self._rows("SELECT name, cells, as_of FROM exports ORDER BY name")
        return [Export(name, tuple(json.loads(cells)), as_of) for name, cells, as_of in rows]

    @override
    def add_features(self, source: str, rows: Iterable[tuple[bytes, bytes, bytes, bytes]]) -> None:
        self.connection.execute("INSERT OR IGNORE INTO feature_sources VALUES (NULL, ?)", (source,))
        number = self._feature_sources()[source]
        for hash_, tag, body, mac in rows:
            place = self.connection.execute("INSERT INTO features VALUES (NULL, ?, ?)", (body, mac)).lastrowid
            self.connection.execute("INSERT INTO feature_rows VALUES (?, ?, ?, ?)", (number, hash_, place, tag))

    @override
    def features(self, source: str) -> Iterator[tuple[bytes, bytes, bytes]]:
        yield from self.connection.execute(
            "SELECT hash, body, mac FROM feature_rows JOIN features USING (id) WHERE source = ?",
            (self._feature_sources().get(source),),
        )

    @override
    def all_features(self) -> Iterator[tuple[str, bytes, bytes, bytes, bytes]]:
        yield from self.connection.execute(
            "SELECT name, hash, tag, body, mac FROM feature_sources "  # with these loops nothing has to be sorted
            "CROSS JOIN feature_rows ON source = feature_sources.id "
            "JOIN features ON features.id = feature_rows.id ORDER BY name"
        )

    @override
    def features_of(self, hashes: Collection[bytes]) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        for source, number in self._feature_sources().items():
            joined = "feature_rows JOIN features USING (id)"
            for row in self._look_up(f"hash, body, mac FROM {joined} WHERE source = {number} AND hash", hashes):
                yield (source, *row)

    @override
    def feature_tags(self, source: str) -> Iterator[tuple[bytes, bytes]]:
        number = self._feature_sources().get(source)
        yield from self.connection.execute("SELECT hash, tag FROM feature_rows WHERE source = ?", (number,))

    @override
    def remove_features(self, source: str, hashes: Collection[bytes]) -> None:
        number = self._feature_sources().get(source)
        if number is not None:
            chosen = self._look_up(f"hash, id FROM feature_rows WHERE source = {number} AND hash", hashes)
            self._remove_rows(number, list(chosen))

    @override
    def drop_features(self, source: str) -> None:
        number = self._feature_sources().get(source)
        if number is not None:
            self._remove_rows(number, self._rows("SELECT hash, id FROM feature_rows WHERE source = ?", number))
            self.connection.execute("DELETE FROM feature_sources WHERE id = ?", (number,))

    def _feature_sources(self) -> dict[str, int]:
        return dict(self._rows("SELECT name, id FROM feature_sources ORDER BY id"))

    def _remove_rows(self, source: int, rows: Collection[tuple[bytes, int]]) -> None:
        zeros = "body = zeroblob(length(body)), mac = zeroblob(length(mac))"
        self._many(f"UPDATE features SET {zeros} WHERE id = ?", [(place,) for _, place in rows])
        chosen = [(source, hash_, place) for hash_, place in rows]
        self._many("DELETE FROM feature_rows WHERE source = ? AND hash = ? AND id = ?", chosen)

    @override
    def seal_features(self, mac: Callable[[str, bytes, bytes], bytes]) -> None:
        self.connection.create_function("sealed", 3, mac)
        self.connection.execute(
            "UPDATE features SET mac = sealed(feature_sources.name, feature_rows.hash, body) "
            "FROM feature_rows JOIN feature_sources ON feature_sources.id = feature_rows.source "
            "WHERE feature_rows.id = features.id"
        )

    @override
    def queue(self, files: Iterable[QueuedFile]) -> None:
        rows = ((os.fsencode(file.path), file.request, file.size, file.evidence, file.left) for file in files)
        self._many("INSERT OR REPLACE INTO erasures VALUES (?, ?, ?, ?, ?)", rows)

    @override
    @_decoding("The list of files to erase")
    def queued(self) -> list[QueuedFile]:
        rows = self._rows("SELECT path, request, bytes, evidence, left_alone FROM erasures ORDER BY request, path")
        return [
            QueuedFile(os.fsdecode(path), request, size, evidence, bool(left))
            for path, request, size, evidence, left in rows
        ]

    @override
    def replace_queue(self, files: Iterable[QueuedFile]) -> None:
        self.connection.execute("DELETE FROM erasures")  # all of it, which frees, and so clears, all of its pages
        self.queue(files)

    @override
    def clear_traces(self, patience: float = 2.0) -> None:
        # brings the write-ahead log into the database and empties it; while another process reads, that cannot be done
        log = self._path.with_name(f"{FILE}-wal")
        if not log.exists() or log.stat().st_size == 0:
            return
        self.connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.connection.execute(f"PRAGMA busy_timeout = {_PATIENCE * 1000}")

    @override
    def owned(self) -> Iterator[tuple[str, OwnedFile]]:
        query = "SELECT owner, head, body FROM files JOIN vault ON id = path"
        yield from ((owner, _owned(head, body)) for owner, head, body in self.connection.execute(query))

    @override
    @_decoding("A unit that is set aside")
    def artifacts_aside(self) -> list[tuple[int, Artifact]]:
        query = (
            "SELECT set_aside.id, name, cells, head, body, as_of, mac FROM set_aside JOIN vault ON vault.id = record "
        )
        return [
            (place, Artifact(name, tuple(json.loads(cells)), key, _digest(head), _score(head), provenance, as_of, mac))
            for place, name, cells, head, body, as_of, mac in self._rows(query)
            for key, provenance in [json.loads(body)]
        ]

    @override
    def empty(self) -> None:
        for table in [name for kind, name, _ in self._rows(_FORM) if kind == "table"]:
            self.connection.execute(f"DELETE FROM {table}")

    @override
    def give_up(self, target: str, token: str) -> None:
        self.note({_MOVED: json.dumps([target, token])})
        # so that it does not slow down the look before each batch
        self.connection.execute("INSERT INTO events VALUES (-1, '', ?, '', '', '', '', NULL, NULL)", (_NO_REQUEST,))

    def _check_here(self) -> None:
        for (mark,) in self._rows(f"SELECT value FROM notes WHERE name = '{_MOVED}'"):
            with ledger_errors("The target of the store's copy"):
                target, token = json.loads(mark)
            raise MovedError(self._folder, str(target), str(token))

    @override
    def compact(self) -> None:
        counts = " + ".join(f"(SELECT COUNT(*) FROM {table})" for table in ("artifacts", "set_aside", "files"))
        used = self._number(f"SELECT {counts}")
        if self._number("SELECT MAX(id) FROM vault") - used <= max(used, _MUCH):
            return
        query = "SELECT name, '', head, body FROM artifacts JOIN vault ON id = record"
        aside = "SELECT set_aside.id, '', head, body FROM set_aside JOIN vault ON vault.id = record"
        owned = "SELECT owner, tag, head, body FROM files JOIN vault ON id = path"
        rows = self._rows(f"{query} UNION ALL {aside} UNION ALL {owned}")
        self.connection.execute("DELETE FROM vault")  # all of it, which frees, and so clears, all of its pages
        for owner, tag, head, body in rows:
            place = self.connection.execute("INSERT INTO vault VALUES (NULL, ?, ?)", (head, body)).lastrowid
            if tag:
                self.connection.execute("UPDATE files SET path = ? WHERE owner = ? AND tag = ?", (place, owner, tag))
            elif isinstance(owner, int):
                self.connection.execute("UPDATE set_aside SET record = ? WHERE id = ?", (place, owner))
            else:
                self.connection.execute("UPDATE artifacts SET record = ? WHERE name = ?", (place, owner))

    @override
    def rewrite(self) -> None:
        self.connection.execute("VACUUM")
        self.clear_traces()

    @override
    def problems(self, tombstones_only: bool = False) -> list[str]:
        check = "PRAGMA integrity_check('tombstones')" if tombstones_only else "PRAGMA integrity_check(5)"
        return [row[0] for row in self._rows(check) if row[0] != "ok"]

    def _check_format(self, create: bool) -> None:
        connection = self.connection
        # another program's database must not be changed
        if create and not self._rows("SELECT 1 FROM sqlite_master"):
            connection.execute("PRAGMA journal_mode = WAL")
            with self._block():
                if not self._rows("SELECT 1 FROM sqlite_master"):
                    _make_tables(connection)
                    connection.execute(f"PRAGMA user_version = {FORMAT}")
        found = self._number("PRAGMA user_version")
        if found != FORMAT:
            raise StoreError(
                f"The ledger {self._path} has format {found}, this version of lightning_s3t reads {FORMAT}. Use the "
                "version that made it, or train again into a new folder, without the forgotten subjects."
            )
        # a trigger could undo writes, an index could silently reject them, a table could be something else
        for kind, name, _ in sorted({*self._rows(_FORM)} ^ _expected_form(), key=lambda row: (row[0], row[1])):
            raise StoreError(
                f"The ledger {self._path} has the {kind} {name!a}, which a store does not have. Expected only the "
                "tables and indices of a store: the ledger was changed, or is damaged. Nothing is served. Restore it "
                "from a backup."
            )
        self._check_here()
        if self._rows("PRAGMA journal_mode") != [("wal",)]:  # a copy that SQLite has made by VACUUM INTO, for example
            connection.execute("PRAGMA journal_mode = WAL").fetchall()

    @override
    def _do(self, query: str, *values: Any) -> None:
        self.connection.execute(query, values)

    @override
    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self.connection.execute(query, values).fetchall()

    @override
    def _stream(self, query: str) -> Iterator[Any]:
        yield from self.connection.execute(query)

    @override
    def _array(self, values: Collection[str]) -> str:
        return _list(values)

    def _many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        self.connection.executemany(query, rows)

    def _look_up(self, query: str, values: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        asked = iter(sorted(values))  # in the order of the tree: neighbours are on one page
        while chunk := list(islice(asked, _CHUNK)):
            yield from self._rows(f"SELECT {query} IN ({','.join('?' * len(chunk))})", *chunk)

    def _keep(self, head: str, body: str = "") -> int:
        row = (os.fsencode(head), os.fsencode(body))
        place = self.connection.execute("INSERT INTO vault VALUES (NULL, ?, ?)", row).lastrowid
        assert place is not None
        return place

    def _give(self, path: str, owner: str, evidence: str) -> None:
        tag = self._tag(path)
        self._wipe("SELECT path FROM files WHERE tag = ?", tag)
        self.connection.execute("DELETE FROM files WHERE tag = ?", (tag,))
        self.connection.execute("INSERT INTO files VALUES (?, ?, ?)", (owner, tag, self._keep(path, evidence)))

    def _wipe(self, places: str, *values: Any) -> None:
        # of the same length and type, so that SQLite overwrites the row where it is
        zeros = "head = zeroblob(length(head)), body = zeroblob(length(body))"
        self.connection.execute(f"UPDATE vault SET {zeros} WHERE id IN ({places})", values)

    def _disown(self, owners: Collection[str], records: str = "") -> list[OwnedFile]:
        owned, listed = f"files WHERE owner IN {_AMONG}", _list(owners)
        paths = self._rows(f"SELECT head, body FROM vault WHERE id IN (SELECT path FROM {owned})", listed)
        places = [records] if records else []
        if paths:
            places.append(f"SELECT path FROM {owned}")
        if places:  # in one statement, in the order of the places: a record is next to its path
            self._wipe(" UNION ALL ".join(places), *[listed] * len(places))
        if paths:
            self._do(f"DELETE FROM {owned}", listed)
        return [_owned(*row) for row in paths]

    def _take_out(self, names: Collection[str]) -> None:
        listed = f"SELECT json.value, name FROM artifacts, json_each(cells) AS json WHERE name IN {_AMONG}"
        self.connection.execute(f"DELETE FROM cells WHERE (cell, artifact) IN ({listed})", (_list(names),))
        self._do(f"DELETE FROM artifacts WHERE name IN {_AMONG}", _list(names))


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)


@functools.cache
def _expected_form() -> frozenset[tuple[str, str, str]]:
    connection = sqlite3.connect(":memory:")
    try:
        _make_tables(connection)
        return frozenset(connection.execute(_FORM))
    finally:
        connection.close()


def _list(values: Collection[str]) -> str:
    return json.dumps(list(values))


def _owned(head: bytes, body: bytes) -> OwnedFile:
    return OwnedFile(os.fsdecode(head), os.fsdecode(body))


def _digest(head: bytes) -> str:
    return head.partition(b"\n")[0].decode()


def _score(head: bytes) -> float | None:
    score = head.split(b"\n")[1]
    return float(score) if score else None


def _record(head: bytes) -> str:
    return head.split(b"\n")[2].decode()


class _Cursor(sqlite3.Cursor):
    def execute(self, *args: Any) -> _Cursor:
        return self._ours(super().execute, *args)

    def executemany(self, *args: Any) -> _Cursor:
        return self._ours(super().executemany, *args)

    def fetchone(self) -> Any:
        return self._ours(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._ours(super().fetchall)

    def __next__(self) -> Any:
        return self._ours(super().__next__)

    def _ours(self, call: Callable[..., _Result], *args: Any) -> _Result:
        connection: Any = self.connection
        try:
            with connection.in_use:
                return call(*args)
        except sqlite3.ProgrammingError as error:
            raise _closed(error) from error
        except sqlite3.OperationalError as error:
            raise LedgerUnreachableError(
                f"The ledger could not be read or written ({error}). Wait for the other process to end, free disk "
                "space, or fix the files' permissions, and try again."
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise StoreError(
                f"The ledger is damaged ({error}). Nothing is served from a damaged ledger. Restore ledger.db from a "
                "backup (missing requests are carried out again from the journal), or train again into a new folder."
            ) from error


class _Connection(sqlite3.Connection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.in_use = threading.RLock()

    def close(self) -> None:
        with self.in_use:  # closed in the middle of a statement of another thread, SQLite ends the whole process
            super().close()

    def execute(self, *args: Any) -> _Cursor:
        return self._cursor().execute(*args)

    def executemany(self, *args: Any) -> _Cursor:
        return self._cursor().executemany(*args)

    def _cursor(self) -> _Cursor:
        try:
            return self.cursor(_Cursor)
        except sqlite3.ProgrammingError as error:
            raise _closed(error) from error


def _closed(error: sqlite3.ProgrammingError) -> StoreError:
    return StoreError(
        f"The store was closed while a thread was using it ({error}). Let the thread end first, or open the store "
        "again."
    )


def _check_writable(folder: Path) -> None:
    may = os.access(folder, os.W_OK | os.X_OK) if folder.is_dir() else True
    file = folder / FILE
    if not may or (file.exists() and not os.access(file, os.W_OK)):
        raise StoreError(
            f"The store {folder} cannot be written by this process: permission denied, or a read-only disk. Write "
            "access is needed even for serving: SQLite keeps files next to the ledger, and due requests have to be "
            "carried out and erased. Mount the folder for writing, or run as its owner."
        )


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database such that deleted values are unreadable, and committed changes are durable."""
    if path.is_symlink():  # put there since the store was opened
        raise StoreError(
            f"The ledger {path} is a symbolic link, and links are not followed. Put the file itself there."
        )
    try:
        connection = sqlite3.connect(
            path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except sqlite3.OperationalError as error:
        raise LedgerUnreachableError(f"The ledger {path} cannot be opened ({error}).") from error
    connection.execute("PRAGMA trusted_schema = OFF")  # the file may be a stranger's
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA cache_size = -{_CACHE}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA synchronous = FULL")
    return connection
