"""A ledger in PostgreSQL: one schema of a database, for any number of processes of any number of machines."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo
from typing_extensions import override

from lightning_s3t.core.documents import canonical
from lightning_s3t.core.events import Event, Kind
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import LedgerUnreachableError, MovedError, RolledBackError, StoreError
from lightning_s3t.store.disk.journal_file import newest_event
from lightning_s3t.store.ledgers.address import LedgerAddress
from lightning_s3t.store.ledgers.ledger import (
    Artifact,
    ArtifactEntry,
    Export,
    Mark,
    OwnedFile,
    QueuedFile,
    SetAside,
    Tombstone,
    ledger_errors,
)
from lightning_s3t.store.ledgers.sql import SqlLedger, owner_aside, owner_of_attempt, owner_of_export, parse_body

FORMAT = 3
CHANNEL = "lightning_s3t"
"""The NOTIFY channel of a schema, where each request is announced. Only a hint: replicas rely on their own looks."""
_PATIENCE = 30.0  # seconds, for a lock, and for a server that is away when a commit's outcome is in doubt
_CHUNK = 5000  # rows a statement
_LAST_LETTER = chr(0x10FFFF)

_SCHEMA = """
-- one row. Whoever writes locks it first. It says which folder the ledger belongs to, and what has taken its place
CREATE TABLE store (format integer NOT NULL, folder text NOT NULL, moved_to text);
-- what tells a process whose connection broke in a COMMIT whether that was carried out. PostgreSQL's own numbers
-- cannot: a standby that takes over may give them out again
CREATE TABLE transactions (id text PRIMARY KEY, time timestamptz NOT NULL DEFAULT now());
CREATE TABLE notes (name text COLLATE "C" PRIMARY KEY, value text NOT NULL);
-- the other tables mean what they mean in SQLite (sqlite_ledger.py)
CREATE TABLE subjects (hash bytea PRIMARY KEY, band integer NOT NULL, generation integer NOT NULL);
CREATE TABLE events (
    position bigint PRIMARY KEY,
    kind text NOT NULL,
    request bigint,
    time text NOT NULL,
    body text NOT NULL,
    digest text NOT NULL,
    mac text NOT NULL,
    forgotten bigint,
    name text
);
CREATE INDEX events_by_request ON events (request);
CREATE INDEX events_by_name ON events (name) WHERE name IS NOT NULL;
CREATE TABLE tombstones (hash bytea PRIMARY KEY, request bigint NOT NULL, cell text COLLATE "C" NOT NULL);
CREATE INDEX tombstones_by_cell ON tombstones (cell, request);
CREATE TABLE marks (
    kind text NOT NULL,
    hash bytea NOT NULL,
    number bigint NOT NULL,
    cell text COLLATE "C" NOT NULL,
    PRIMARY KEY (hash, kind, number)
);
CREATE INDEX marks_by_cell ON marks (cell, kind, number);
CREATE TABLE pending (hash bytea PRIMARY KEY, due text COLLATE "C" NOT NULL, cell text COLLATE "C" NOT NULL);
CREATE TABLE replicas (
    id text COLLATE "C" PRIMARY KEY,
    max_staleness double precision NOT NULL,
    request bigint NOT NULL
);
CREATE TABLE artifacts (
    name text COLLATE "C" PRIMARY KEY,
    as_of bigint NOT NULL,
    cells text[] NOT NULL,
    mac text NOT NULL,
    digest text NOT NULL,
    score double precision,
    record text NOT NULL,
    key bytea NOT NULL,
    provenance bytea NOT NULL
);
CREATE TABLE cells (cell text COLLATE "C", artifact text COLLATE "C", PRIMARY KEY (cell, artifact));
CREATE TABLE set_aside (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, LIKE artifacts);
CREATE TABLE attempts (name text COLLATE "C" PRIMARY KEY);
CREATE TABLE exports (name text COLLATE "C" PRIMARY KEY, as_of bigint NOT NULL, cells text[] NOT NULL);
CREATE TABLE files (
    owner text COLLATE "C",
    tag bytea,
    path bytea NOT NULL,
    evidence bytea NOT NULL,
    PRIMARY KEY (owner, tag)
);
CREATE INDEX files_by_tag ON files (tag);
CREATE TABLE erasures (
    tag bytea PRIMARY KEY,
    path bytea NOT NULL,
    request bigint,
    bytes bigint,
    evidence bytea NOT NULL,
    left_alone boolean NOT NULL
);
"""
_TABLES = frozenset(re.findall(r"CREATE TABLE (\w+)", _SCHEMA))
_ENTRY = "name, as_of, digest, score, record, mac"
_ARTIFACT = "name, as_of, cells, mac, digest, score, record, key, provenance"
# small tables with rows that a request or an erasure removes
_CLEARED = "artifacts, cells, set_aside, attempts, exports, files, erasures, pending, marks"
_HASHED = ("subjects", "tombstones", "marks", "pending")

# whatever the server's, the database's or the role's defaults are
_SETTINGS = """
SELECT set_config('search_path', %s, false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('lock_timeout', '30s', false),
    set_config('idle_in_transaction_session_timeout', '10min', false),
    set_config('tcp_keepalives_idle', '10', false),
    set_config('tcp_keepalives_interval', '10', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
        ELSE current_setting('synchronous_commit') END, false)
"""
# objects that a table must not have: they could undo, change or hide writes
_HOOKS = """
SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid WHERE relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT rulename FROM pg_rewrite JOIN pg_class ON pg_class.oid = ev_class WHERE relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT relname FROM pg_class WHERE relnamespace = %(schema)s::regnamespace AND relrowsecurity
"""

_Row = tuple[Any, ...]
_Value = TypeVar("_Value")


class PostgresLedger(SqlLedger):
    """A store's tables in a schema of a PostgreSQL database, with a connection for each thread of each process.

    Every transaction first locks the one row of the table `store`, in READ COMMITTED: it then reads the state that the
    previous one left. (In SERIALIZABLE the statement that waits for the lock would fix the snapshot before it has the
    lock.)

    PostgreSQL does not make deleted values unreadable: copies stay in its write-ahead log, on standbys, in backups, and
    in a table's pages until they are overwritten. So nothing of a model and no row of data is kept in it, nor its
    features: only keyed hashes of ids, places, digests, and the origins of units.

    Args:
        folder: The store.
        address: The address of the database, and the folder that the schema belongs to.
        create: Make the tables if there are none.

    Raises:
        StoreError: The server cannot be reached or is a standby; or the tables are missing, or are not those of this
            store.
    """

    keeps_features = False
    _value = "%s"
    _among = "= ANY (%s::text[])"

    def __init__(self, folder: Path, address: LedgerAddress, create: bool = False) -> None:
        super().__init__(folder)
        self._address = address
        self._own = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._cursors = itertools.count()
        self._opened = False
        self._to_clear = True  # a crash may have come before
        self._newest: tuple[int, str] | None = None  # that this process has added
        self._newest_request = 0  # that this process has seen
        try:
            self._check_tables(create)
        except BaseException:
            self.close()
            raise
        self._opened = True

    # connections and transactions

    @contextmanager
    @override
    def transaction(self) -> Iterator[None]:
        session = self._begin("BEGIN ISOLATION LEVEL READ COMMITTED", lock=True)
        mark = uuid.uuid4().hex
        try:
            yield
            # refused after an error that the block has passed over, when a COMMIT would undo all without a word
            self._do("INSERT INTO transactions (id) VALUES (%s)", mark)
            self._commit(session, mark)
        except BaseException as error:
            session.roll_back()
            cause = error.__cause__ if type(error) in (StoreError, LedgerUnreachableError) else None
            if isinstance(cause, (psycopg.OperationalError, OSError)):
                raise LedgerUnreachableError(
                    f"The ledger of the store {self._folder} could not be written ({_text(cause)}). Nothing was "
                    "changed. Remove the cause, and try again."
                ) from cause
            raise
        finally:
            session.in_block = False

    @contextmanager
    @override
    def at_one_time(self) -> Iterator[None]:
        session = self._begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", lock=False)
        try:
            yield
        finally:
            session.roll_back()
            session.in_block = False

    @override
    def close(self) -> None:
        for session in list(self._sessions):
            session.close()
        self._own = threading.local()

    def _begin(self, statement: str, lock: bool, check: bool = True) -> _Session:
        for is_last in (False, True):
            session = self._session()
            if session.in_block:
                raise StoreError(f"Transactions on the ledger of the store {self._folder} cannot be nested.")
            try:
                with self._errors():
                    session.connection.execute(statement.encode())
                    if lock:
                        row = session.connection.execute("SELECT moved_to FROM store FOR UPDATE").fetchone()
                        if row is None:
                            raise StoreError(
                                f"The ledger at {self._address} is damaged: its table `store` is empty. Nothing was "
                                "changed. Restore it from a backup."
                            )
                        if check:
                            self._check_here(row[0])
            except BaseException:
                # a connection that broke since it was last used: nothing was done with it
                if session.is_broken and not is_last:
                    continue
                session.roll_back()
                raise
            break
        session.in_block, session.added = True, None
        return session

    def _commit(self, session: _Session, mark: str) -> None:
        try:
            session.connection.execute("COMMIT")
        except psycopg.OperationalError as error:
            if not session.is_broken:
                raise LedgerUnreachableError(f"The ledger could not be written ({_text(error)}).") from error
            session.in_block = False
            if not self._was_committed(mark, error):
                raise LedgerUnreachableError(f"The connection broke in a COMMIT ({_text(error)}).") from error
        except psycopg.Error as error:
            raise self._converted(error) from error
        if session.added is not None:
            self._newest = session.added

    def _was_committed(self, mark: str, cause: Exception) -> bool:
        """Return whether a transaction was carried out although its COMMIT got no answer."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                # waits for its end, if it still runs; it may have retired the store
                self._begin("BEGIN ISOLATION LEVEL READ COMMITTED", lock=True, check=False)
                try:
                    return bool(self._rows("SELECT 1 FROM transactions WHERE id = %s", mark))
                finally:
                    session = self._session()
                    session.roll_back()
                    session.in_block = False
            except RolledBackError:
                raise
            except StoreError as error:
                if time.monotonic() > deadline:
                    raise _UnknownOutcomeError(
                        f"The connection to the ledger at {self._address} broke while a change was committed "
                        f"({_text(cause)}), and the server has been unreachable since: it is unknown whether the "
                        "change was carried out. When the server is back, check with `s3t receipt list`, or repeat "
                        "the request: with the same request_id it is not carried out twice."
                    ) from error
            time.sleep(0.2)

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._own, "session", None)
        if session is not None and session.process != os.getpid():
            _of_parents.append(session)  # closing it would end the parent's
            session = None
        if session is not None and session.is_broken:
            if session.in_block:
                raise self._converted(psycopg.OperationalError("the connection is broken"))
            session = None
        if session is None:
            session = _Session(self._connect())
            self._sessions.add(session)
            self._own.session = session
        return session

    def _connect(self) -> psycopg.Connection[_Row]:
        given = conninfo.conninfo_to_dict(self._address.url)
        defaults = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "application_name": "lightning_s3t"}
        # the primary, of several hosts: a standby may show the state before a request
        fixed = {"target_session_attrs": "read-write", "client_encoding": "UTF8"}
        settings: dict[str, Any] = {**defaults, **given, **fixed}
        with self._errors():
            try:
                connection = psycopg.connect(**settings, autocommit=True)
            except psycopg.OperationalError as error:
                raise LedgerUnreachableError(
                    f"The ledger at {self._address} cannot be used ({_text(error)}). Expected a reachable PostgreSQL "
                    "server that is not a standby. A password belongs in ~/.pgpass or PGPASSWORD."
                ) from error
            try:
                row = connection.execute(_SETTINGS, (self._address.schema,)).fetchone()
                assert row is not None
                looked = "SELECT pg_is_in_recovery(), current_setting('server_encoding')"
                standby, encoding = connection.execute(looked).fetchone() or (True, "")
                if standby or encoding != "UTF8":
                    what = "is a standby, which may be behind" if standby else f"has the encoding {encoding}"
                    raise StoreError(f"The database at {self._address} {what}. Expected a primary's, in UTF8.")
                if self._opened:
                    self._check_history(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _check_history(self, connection: psycopg.Connection[_Row]) -> None:
        """Check that the server, which may be a different one, has everything that was carried out.

        The journal is written when a transaction has ended, so it is never ahead of a server that has lost nothing.
        """
        found = newest_event(self._folder)
        known = [(found.position, found.digest)] if found is not None else []
        if self._newest is not None:
            known.append(self._newest)
        for position, digest in known:
            row = connection.execute("SELECT digest FROM events WHERE position = %s", (position,)).fetchone()
            if row is None or row[0] != digest:
                raise self._rolled_back(f"event {position} of its history")

    def _rolled_back(self, what: str) -> RolledBackError:
        return RolledBackError(
            f"The ledger at {self._address} has lost {what}: a standby that was behind took over, or an old backup "
            f"was restored. Nothing is served. Open the store {self._folder} again (any s3t command does this): the "
            "requests in its journal are carried out again. Repeat requests that got no answer."
        )

    def _check_tables(self, create: bool) -> None:
        schema, made = self._address.schema, "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        found = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind NOT IN ('i', 'S')"
        tables = {name for (name,) in self._rows(found, schema)} if self._rows(made, schema) else set[str]()
        if create and not tables:
            self._make_tables()
            tables = set(_TABLES)
        if "store" not in tables:
            raise StoreError(
                f"There is no ledger at {self._address}: the schema is missing, or its tables are not those of a "
                "store. Name a schema without tables (?schema=name), or restore the database from a backup."
            )
        form, folder = (self._rows("SELECT format, folder FROM store") or [(0, "")])[0]
        if form != FORMAT:
            raise StoreError(
                f"The ledger at {self._address} has format {form}, this version of lightning_s3t reads {FORMAT}. Use "
                "the version that made it, or train again into a new folder and schema, without the forgotten "
                "subjects."
            )
        if folder != self._address.id:
            raise StoreError(
                f"The ledger at {self._address} belongs to a folder other than {self._folder}. Each store needs its "
                "own schema: name another one (?schema=name)."
            )
        self._check_here(self._rows("SELECT moved_to FROM store")[0][0])
        strange = sorted(tables ^ _TABLES) or [name for (name,) in self._rows(_HOOKS, {"schema": schema})]
        if strange:
            raise StoreError(
                f"The ledger at {self._address} has a table, trigger, rule or policy that a store does not have: "
                f"{strange[0]!a}. Expected only the tables of a store: the ledger was changed, or is damaged. Nothing "
                "is served."
            )

    def _make_tables(self) -> None:
        session = self._begin("BEGIN ISOLATION LEVEL READ COMMITTED", lock=False)
        try:
            if not self._rows("SELECT 1 FROM pg_namespace WHERE nspname = %s", self._address.schema):
                self._do(f'CREATE SCHEMA "{self._address.schema}"')
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._do(statement)
            self._do("INSERT INTO store VALUES (%s, %s)", FORMAT, self._address.id)
            self._do("COMMIT")
        finally:
            session.roll_back()
            session.in_block = False

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._converted(error) from error

    def _converted(self, error: psycopg.Error) -> StoreError:
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            what = f"The ledger at {self._address} could not be read or written ({_text(error)}). Remove the cause"
            found: StoreError = LedgerUnreachableError(
                f"{what}: another process that does not end, the server, the network. Then try again."
            )
        elif isinstance(error, psycopg.errors.InFailedSqlTransaction):
            found = StoreError(f"A transaction on the ledger at {self._address} had failed. Nothing was changed.")
        else:
            found = StoreError(
                f"The ledger at {self._address} is damaged, or was changed ({_text(error)}). Nothing is served from a "
                "damaged ledger. Restore the database from a backup (missing requests are carried out again from the "
                "journal)."
            )
        found.__cause__ = error
        return found

    # statements

    @override
    def _do(self, query: str, *values: Any) -> psycopg.Cursor[_Row]:
        parameters = values[0] if len(values) == 1 and isinstance(values[0], dict) else values or None
        for is_last in (False, True):
            session = self._session()
            try:
                with self._errors():
                    return session.connection.execute(query.encode(), parameters)
            except StoreError:
                # outside a block only repeatable statements run
                if is_last or session.in_block or not session.is_broken:
                    raise
        raise AssertionError

    @override
    def _rows(self, query: str, *values: Any) -> list[Any]:
        cursor = self._do(query, *values)
        with self._errors():
            found: list[Any] = cursor.fetchall()
            return found

    def _many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement with rows as arrays of their columns, thousands at a time."""
        for chunk in _chunks(rows):
            self._do(query, *map(list, zip(*chunk, strict=True)))

    def _each(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for one row after the other."""
        with self._errors(), self._session().connection.cursor() as cursor:
            cursor.executemany(query.encode(), rows)

    def _look_up(self, query: str, values: Iterable[bytes]) -> Iterator[_Row]:
        for chunk in _chunks(values):
            yield from self._rows(f"SELECT {query} = ANY (%s::bytea[])", chunk)

    @override
    def _array(self, values: Collection[str]) -> list[str]:
        return list(values)

    @override
    def _stream(self, query: str) -> Iterator[Any]:
        session = self._session()
        if not session.in_block:
            yield from self._rows(query)
            return
        with self._errors(), session.connection.cursor(name=f"s3t_{next(self._cursors)}") as cursor:
            cursor.itersize = _CHUNK
            cursor.execute(query.encode())
            yield from cursor

    # the store's own notes

    @override
    def notes(self, *names: str) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM notes WHERE name = ANY (%s::text[])", list(names)))

    @override
    def note(self, notes: Mapping[str, str]) -> None:
        self._many(
            "INSERT INTO notes SELECT * FROM unnest(%s::text[], %s::text[]) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            notes.items(),
        )

    # subjects

    @override
    def register(self, rows: Iterable[tuple[bytes, int]], generation: int = 0) -> None:
        self._many(
            f"INSERT INTO subjects SELECT hash, band, {int(generation)} FROM unnest(%s::bytea[], %s::int[]) AS new "
            "(hash, band) WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE tombstones.hash = new.hash) "
            "ON CONFLICT DO NOTHING",
            rows,
        )

    @override
    def merge_generations(self, into: int) -> None:
        self._do("UPDATE subjects SET generation = %s WHERE generation > %s", into, into)

    @override
    def schedule(self, rows: Iterable[tuple[bytes, str, Cell]]) -> None:
        self._each(
            "INSERT INTO pending SELECT * FROM (VALUES (%s::bytea, %s::text, %s::text)) AS new (hash, due, cell) "
            "WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE tombstones.hash = new.hash) "
            "ON CONFLICT (hash) DO UPDATE SET due = LEAST(pending.due, excluded.due), cell = excluded.cell",
            rows,
        )

    @override
    def unschedule(self, hashes: Iterable[bytes]) -> None:
        self._many("DELETE FROM pending WHERE hash = ANY (%s::bytea[])", ((hash_,) for hash_ in hashes))
        self._to_clear = True

    @override
    def bury(self, rows: Iterable[Tombstone], request: int) -> None:
        for chunk in _chunks(sorted(rows)):
            hashes, cells = [hash_ for hash_, _ in chunk], [cell for _, cell in chunk]
            self._do(
                "INSERT INTO tombstones SELECT hash, %s, cell FROM unnest(%s::bytea[], %s::text[]) AS new (hash, cell) "
                "ON CONFLICT DO NOTHING",
                request,
                hashes,
                cells,
            )
            self._do("DELETE FROM subjects WHERE hash = ANY (%s::bytea[])", hashes)
            self._do("DELETE FROM pending WHERE hash = ANY (%s::bytea[])", hashes)

    @override
    def mark(self, marks: Iterable[Mark]) -> None:
        self._many(
            "INSERT INTO marks SELECT * FROM unnest(%s::text[], %s::bytea[], %s::bigint[], %s::text[]) "
            "ON CONFLICT DO NOTHING",
            marks,
        )

    @override
    def unmark(self, marks: Iterable[Mark]) -> None:
        self._many(
            "DELETE FROM marks USING unnest(%s::bytea[], %s::text[], %s::bigint[]) AS gone (hash, kind, number) "
            "WHERE (marks.hash, marks.kind, marks.number) = (gone.hash, gone.kind, gone.number)",
            ((mark.hash, mark.kind, mark.number) for mark in marks),
        )
        self._to_clear = True

    @override
    def rehash(self, renew: Callable[[bytes], bytes]) -> None:
        for table in _HASHED:
            # a cursor sees the table as of its opening
            hashes = (hash_ for (hash_,) in self._stream(f"SELECT DISTINCT hash FROM {table}"))
            self._many(
                f"UPDATE {table} SET hash = renewed.new FROM unnest(%s::bytea[], %s::bytea[]) AS renewed (old, new) "
                f"WHERE {table}.hash = renewed.old",
                ((hash_, renew(hash_)) for hash_ in hashes),
            )

    # events

    @override
    def append(self, event: Event, forgotten: int | None = None) -> None:
        start = (event.position, event.kind, event.request, event.time, canonical(event.body))
        row = (*start, event.digest, event.mac, forgotten, event.body.get("request_id"))
        self._do("INSERT INTO events VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", *row)
        if event.kind == "request":
            self._do("SELECT pg_notify(%s, %s)", CHANNEL, self._address.schema)
        self._session().added = (event.position, event.digest)

    @override
    def events(
        self, after: int = 0, request: int | None = None, kinds: Collection[Kind] | None = None
    ) -> Iterator[Event]:
        query = "SELECT position, kind, request, time, body, digest, mac FROM events"
        if request is None and kinds is None:
            rows = self._stream(f"{query} WHERE position > {int(after)} ORDER BY position")
        else:
            chosen, values = "", list[Any]([after])
            if request is not None:
                chosen, values = "AND request = %s", [after, request]
            if kinds is not None:
                chosen, values = f"{chosen} AND kind = ANY (%s::text[])", [*values, list(kinds)]
            rows = iter(self._rows(f"{query} WHERE position > %s {chosen} ORDER BY position", *values))
        for position, kind, number, moment, body, digest, mac in rows:
            yield Event(position, kind, number, moment, parse_body(body), digest, mac)

    @override
    def request_digests(self, requests: Collection[int]) -> dict[int, str]:
        query = "SELECT request, digest FROM events WHERE request = ANY (%s::bigint[]) AND kind = 'request'"
        return dict(self._rows(query, list(requests)))

    @override
    def watermark(self) -> int:
        seen = self._newest_request
        ((newest, mark),) = self._rows("SELECT MAX(request), (SELECT moved_to FROM store) FROM events")
        self._check_here(mark)
        return self._checked(newest or 0, seen)

    def _checked(self, found: int, seen: int) -> int:
        """Return the number of the newest request, after comparing it with the one seen before the query was sent.

        Another thread may have seen a newer one since: that is no loss.
        """
        if not self._session().in_block:  # in a block it may be undone yet
            if found < seen:  # behind a pooler, the server can be another on the same connection
                raise self._rolled_back(f"request {seen}")
            self._newest_request = max(found, self._newest_request)
        return found

    # replicas

    @override
    def add_replica(self, replica: str, max_staleness: float, request: int) -> None:
        self._do(
            "INSERT INTO replicas VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET "
            "max_staleness = excluded.max_staleness, request = excluded.request",
            replica,
            max_staleness,
            request,
        )

    @override
    def look(self, replica: str) -> tuple[int, int | None]:
        query = (
            "SELECT (SELECT MAX(request) FROM events), (SELECT request FROM replicas WHERE id = %s), "
            "(SELECT moved_to FROM store)"
        )
        seen = self._newest_request
        ((newest, known, mark),) = self._rows(query, replica)
        self._check_here(mark)
        return self._checked(newest or 0, seen), known

    @override
    def confirm(self, replica: str, request: int) -> bool:
        query = "UPDATE replicas SET request = GREATEST(request, %s) WHERE id = %s RETURNING id"
        return bool(self._rows(query, request, replica))

    @override
    def remove_replicas(self, replicas: Collection[str], behind: int | None = None) -> None:
        query = "DELETE FROM replicas WHERE id = ANY (%s::text[]) AND (%s::bigint IS NULL OR request < %s)"
        self._do(query, list(replicas), behind, behind)

    # artifacts

    @override
    def add(self, artifact: Artifact, snapshot: str) -> None:
        name, cells = artifact.name, list(artifact.cells)
        self._do(
            f"INSERT INTO artifacts ({_ARTIFACT}) VALUES (%s, %s, %s::text[], %s, %s, %s, %s, %s, %s)",
            name,
            artifact.as_of,
            cells,
            artifact.mac,
            artifact.digest,
            artifact.score,
            artifact.record,
            _encode(artifact.key),
            _encode(artifact.provenance),
        )
        self._do("INSERT INTO cells SELECT cell, %s FROM unnest(%s::text[]) AS new (cell)", name, cells)
        self._do("UPDATE files SET owner = %s WHERE owner = %s", name, owner_of_attempt(name))
        self._insert_file(name, snapshot, "")
        self._do("DELETE FROM attempts WHERE name = %s", name)

    @override
    def remove(self, names: Collection[str]) -> list[OwnedFile]:
        files = self._disown(names)
        self._take_out(names)
        return files

    @override
    def scores(self, prefix: str = "") -> dict[str, float | None]:
        query = "SELECT name, score FROM artifacts WHERE name >= %s AND name < %s"
        return dict(self._rows(query, prefix, prefix + _LAST_LETTER))

    @override
    def digests(self, names: Collection[str] | None = None) -> dict[str, str]:
        return dict(self._of_artifacts("name, digest", names))

    @override
    def artifacts(self, names: Collection[str] | None = None) -> list[Artifact]:
        found: list[Artifact] = []
        rows = self._of_artifacts(f"{_ENTRY}, key, provenance", names)
        with ledger_errors("The record of a unit"):
            for name, as_of, digest, score, record, mac, key, provenance in rows:
                one = Artifact(name, (), _decode(key), digest, score, _decode(provenance), as_of, mac)
                if one.record != record:
                    raise ValueError(f"unit {name} does not match what was written")
                found.append(one)
        return found

    @override
    def entries(self, names: Collection[str] | None = None) -> list[ArtifactEntry]:
        return [ArtifactEntry(*row) for row in self._of_artifacts(_ENTRY, names)]

    @override
    def seal(self, macs: Mapping[str, str]) -> None:
        self._many(
            "UPDATE artifacts SET mac = new.mac FROM unnest(%s::text[], %s::text[]) AS new (name, mac) "
            "WHERE artifacts.name = new.name",
            macs.items(),
        )

    @override
    def set_aside(self, names: Collection[str]) -> None:
        copied = f"INSERT INTO set_aside ({_ARTIFACT}) SELECT {_ARTIFACT} FROM artifacts WHERE name = %s RETURNING id"
        for name in names:
            for (place,) in self._rows(copied, name):
                self._do("UPDATE files SET owner = %s WHERE owner = %s", owner_aside(place), name)
        self._take_out(names)

    @override
    def aside(self) -> list[SetAside]:
        rows = self._rows(f"SELECT id, cells, {_ENTRY} FROM set_aside ORDER BY id")
        return [SetAside(place, tuple(cells), ArtifactEntry(*entry)) for place, cells, *entry in rows]

    @override
    def put_back(self, ids: Collection[int]) -> None:
        for place in ids:
            copied = f"INSERT INTO artifacts ({_ARTIFACT}) SELECT {_ARTIFACT} FROM set_aside WHERE id = %s"
            ((name, cells),) = self._rows(f"{copied} RETURNING name, cells", place)
            self._do("INSERT INTO cells SELECT cell, %s FROM unnest(%s::text[]) AS new (cell)", name, cells)
            self._do("UPDATE files SET owner = %s WHERE owner = %s", name, owner_aside(place))
            self._do("DELETE FROM set_aside WHERE id = %s", place)

    @override
    def remove_aside(self, ids: Collection[int]) -> list[OwnedFile]:
        files = self._disown([owner_aside(place) for place in ids])
        self._do("DELETE FROM set_aside WHERE id = ANY (%s::bigint[])", list(ids))
        return files

    @override
    def seal_aside(self, macs: Mapping[int, str]) -> None:
        self._many(
            "UPDATE set_aside SET mac = new.mac FROM unnest(%s::bigint[], %s::text[]) AS new (id, mac) "
            "WHERE set_aside.id = new.id",
            macs.items(),
        )

    # attempts and files

    @override
    def begin(self, name: str) -> None:
        self._do("INSERT INTO attempts VALUES (%s) ON CONFLICT DO NOTHING", name)

    @override
    def hold(self, path: str, attempt: str) -> None:
        self._insert_file(owner_of_attempt(attempt), path, "")

    @override
    def disown(self, path: str) -> list[str]:
        gone = self._rows("DELETE FROM files WHERE tag = %s RETURNING tag", self._tag(path))
        self._to_clear = True
        return [path] if gone else []

    @override
    def files_of(self, attempt: str) -> list[OwnedFile]:
        rows = self._rows("SELECT path, evidence FROM files WHERE owner = %s", owner_of_attempt(attempt))
        return [_owned(*row) for row in rows]

    @override
    def files(self) -> Iterator[OwnedFile]:
        for path, evidence in self._stream("SELECT path, evidence FROM files"):
            yield _owned(path, evidence)

    # exported copies

    @override
    def add_export(self, export: Export, files: Mapping[str, str]) -> None:
        self._do(
            "INSERT INTO exports VALUES (%s, %s, %s::text[]) "
            "ON CONFLICT (name) DO UPDATE SET as_of = excluded.as_of, cells = excluded.cells",
            export.name,
            export.as_of,
            list(export.cells),
        )
        for path, evidence in files.items():
            self._give(path, owner_of_export(export.name), evidence)

    @override
    def exports(self) -> list[Export]:
        rows = self._rows("SELECT name, cells, as_of FROM exports ORDER BY name")
        return [Export(name, tuple(cells), as_of) for name, cells, as_of in rows]

    # integer features of rows: people's data must not be in a database's log and backups

    @override
    def add_features(self, source: str, rows: Iterable[tuple[bytes, bytes, bytes, bytes]]) -> None:
        raise StoreError(f"The ledger at {self._address} does not keep features of rows. Nothing was added.")

    @override
    def features(self, source: str) -> Iterator[tuple[bytes, bytes, bytes]]:
        return iter(())

    @override
    def features_of(self, hashes: Collection[bytes]) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        return iter(())

    @override
    def feature_tags(self, source: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(())

    @override
    def remove_features(self, source: str, hashes: Collection[bytes]) -> None:
        pass

    @override
    def drop_features(self, source: str) -> None:
        pass

    @override
    def seal_features(self, mac: Callable[[str, bytes, bytes], bytes]) -> None:
        pass

    # erasure

    @override
    def queue(self, files: Iterable[QueuedFile]) -> None:
        self._each(
            "INSERT INTO erasures VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (tag) DO UPDATE SET "
            "request = excluded.request, bytes = excluded.bytes, evidence = excluded.evidence, "
            "left_alone = excluded.left_alone",
            (
                (self._tag(file.path), _encode(file.path), file.request, file.size, _encode(file.evidence), file.left)
                for file in files
            ),
        )

    @override
    def queued(self) -> list[QueuedFile]:
        query = "SELECT path, request, bytes, evidence, left_alone FROM erasures ORDER BY request NULLS FIRST, path"
        return [
            QueuedFile(_decode(path), request, size, _decode(evidence), left)
            for path, request, size, evidence, left in self._rows(query)
        ]

    @override
    def replace_queue(self, files: Iterable[QueuedFile]) -> None:
        self._do("DELETE FROM erasures")
        self.queue(files)
        self._to_clear = True

    # upkeep

    @override
    def clear_traces(self, patience: float = 2.0) -> None:
        if self._to_clear:
            self._do("DELETE FROM transactions WHERE time < now() - interval '1 day'")
            self._do(f"VACUUM (INDEX_CLEANUP ON, SKIP_LOCKED) {_CLEARED}")
            self._to_clear = False

    @override
    def owned(self) -> Iterator[tuple[str, OwnedFile]]:
        for owner, path, evidence in self._stream("SELECT owner, path, evidence FROM files"):
            yield owner, _owned(path, evidence)

    @override
    def all_features(self) -> Iterator[tuple[str, bytes, bytes, bytes, bytes]]:
        return iter(())

    @override
    def artifacts_aside(self) -> list[tuple[int, Artifact]]:
        rows = self._rows(f"SELECT id, {_ARTIFACT} FROM set_aside ORDER BY id")
        return [
            (place, Artifact(name, tuple(cells), _decode(key), digest, score, _decode(provenance), as_of, mac))
            for place, name, as_of, cells, mac, digest, score, _, key, provenance in rows
        ]

    @override
    def empty(self) -> None:
        for table in sorted(_TABLES - {"store", "transactions"}):
            self._do(f"DELETE FROM {table}")
        self._to_clear = True

    @override
    def give_up(self, target: str, token: str) -> None:
        self._do("UPDATE store SET moved_to = %s", json.dumps([target, token]))

    def _check_here(self, mark: str | None) -> None:
        if mark is not None:
            with ledger_errors("The target of the store's copy"):
                target, token = json.loads(mark)
            raise MovedError(self._folder, str(target), str(token))

    @override
    def compact(self) -> None:
        pass  # the server does

    @override
    def rewrite(self) -> None:
        self._do(f"VACUUM (FULL) {', '.join(_HASHED)}")
        self.clear_traces()

    @override
    def problems(self, tombstones_only: bool = False) -> list[str]:
        tables = ["tombstones"] if tombstones_only else sorted(_TABLES)
        found = [
            f"the index {name} is invalid"
            for (name,) in self._rows(
                "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = ANY (%s::regclass[]) "
                "AND NOT (indisvalid AND indisready)",
                tables,
            )
        ]
        for table in () if tombstones_only else tables:  # those are read at every opening
            try:
                self._rows(f"SELECT COUNT(hashtext({table}::text)) FROM {table}")  # reads every value
            except StoreError as error:
                found.append(str(error))
        return found

    def _of_artifacts(self, columns: str, names: Collection[str] | None = None) -> list[Any]:
        query = f"SELECT {columns} FROM artifacts"
        if names is None:
            return self._rows(query)
        return self._rows(f"{query} WHERE name = ANY (%s::text[])", list(names))

    def _take_out(self, names: Collection[str]) -> None:
        listed = "SELECT unnest(cells), name FROM artifacts WHERE name = ANY (%s::text[])"
        self._do(f"DELETE FROM cells WHERE (cell, artifact) IN ({listed})", list(names))
        self._do("DELETE FROM artifacts WHERE name = ANY (%s::text[])", list(names))
        self._to_clear = True

    def _give(self, path: str, owner: str, evidence: str) -> None:
        self._do("DELETE FROM files WHERE tag = %s", self._tag(path))
        self._insert_file(owner, path, evidence)

    def _insert_file(self, owner: str, path: str, evidence: str) -> None:
        values = (owner, self._tag(path), _encode(path), _encode(evidence))
        self._do("INSERT INTO files VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING", *values)

    def _disown(self, owners: Collection[str]) -> list[OwnedFile]:
        query = "DELETE FROM files WHERE owner = ANY (%s::text[]) RETURNING path, evidence"
        self._to_clear = True
        return [_owned(*row) for row in self._rows(query, list(owners))]


class _Session:
    """A connection of one thread of one process, and its state."""

    def __init__(self, connection: psycopg.Connection[_Row]) -> None:
        self.connection = connection
        self.process = os.getpid()
        self.in_block = False
        self.added: tuple[int, str] | None = None  # the newest event of a transaction that has not ended

    @property
    def is_broken(self) -> bool:
        return bool(self.connection.closed)

    def roll_back(self) -> None:
        try:
            if not self.connection.closed and self.connection.info.transaction_status != _IDLE:
                self.connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()  # which undoes all as well

    def close(self) -> None:
        if self.process == os.getpid():
            self.connection.close()

    def __del__(self) -> None:
        self.close()  # its thread has ended


class _UnknownOutcomeError(StoreError):
    """It is unknown whether a transaction was carried out."""


_IDLE = psycopg.pq.TransactionStatus.IDLE
_of_parents: list[
    _Session
] = []  # kept for as long as the process lives: they belong to the one that it was forked from


def _chunks(values: Iterable[_Value]) -> Iterator[list[_Value]]:
    left = iter(values)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _decode(data: bytes) -> str:
    with ledger_errors("A path or a record of a unit"):
        return data.decode(errors="surrogateescape")


def _owned(path: bytes, evidence: bytes) -> OwnedFile:
    return OwnedFile(_decode(path), _decode(evidence))
