"""The ledger: an SQLite database of subjects, events, units and files."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_s3t.errors import StoreError
from lightning_s3t.store.connection import PATIENCE, connect

FILE = "ledger.db"
FORMAT = 2
_CHUNK = 500  # well under SQLite's limit on variables

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- who is in the training data: keyed hashes only, with the band of risk that the place depends on
CREATE TABLE subjects (hash BLOB PRIMARY KEY, band INTEGER NOT NULL) WITHOUT ROWID;
-- what has taken units away, as a chain: see chain.py
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    request INTEGER,
    time TEXT NOT NULL,
    body TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE INDEX events_by_request ON events (request);
-- who must never be trained on again: the place says which units a request reaches
CREATE TABLE tombstones (
    hash BLOB PRIMARY KEY,
    request INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    slice INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tombstones_by_place ON tombstones (shard, slice, request);
-- who has asked to be forgotten later on
CREATE TABLE pending (
    hash BLOB PRIMARY KEY,
    due TEXT NOT NULL,
    shard INTEGER NOT NULL,
    slice INTEGER NOT NULL
) WITHOUT ROWID;
-- as_of is the newest request when the unit's data was chosen
CREATE TABLE units (
    unit TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    score REAL,
    provenance TEXT NOT NULL,
    as_of INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE attempts (unit TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID;
-- files outside the store that were written during a unit: checkpoints
CREATE TABLE files (path TEXT PRIMARY KEY, unit TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX files_by_unit ON files (unit);
-- what has been revoked but not yet been unlinked, with its size then: a crash must not make a receipt forget a file
CREATE TABLE erasures (path TEXT PRIMARY KEY, request INTEGER, bytes INTEGER) WITHOUT ROWID;
"""


@contextmanager
def closed_on_error(ledger: Ledger) -> Iterator[None]:
    """Closes a ledger if the block, which opens its store, fails.

    Args:
        ledger: The ledger.

    Raises:
        StoreError: A file of the store cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        ledger.close()
        raise StoreError(f"The store cannot be opened: {error}.") from error
    except BaseException:
        ledger.close()
        raise


class Ledger:
    """A store's database, with a connection for each thread of each process.

    Args:
        folder: The store.
        create: Make the database if there is none.

    Raises:
        StoreError: There is none, or it is no ledger of this format.
    """

    def __init__(self, folder: Path, create: bool = False) -> None:
        self._path = folder / FILE
        # by process and thread: a connection must not be carried over a fork, and has one transaction at a time
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        if not create and not self._path.is_file():
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
        if found is None:
            found = self._connections[owner] = connect(self._path)
        return found

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Runs a block as one transaction that excludes other writers; an error undoes all of it.

        Raises:
            StoreError: It cannot be done: another process writes for too long, or the disk is full.
        """
        connection = self.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:  # SQLite has ended it itself when the disk was full
                connection.execute("ROLLBACK")
            cause = error.__cause__ if isinstance(error, StoreError) else None
            if isinstance(cause, (sqlite3.OperationalError, OSError)):
                raise StoreError(
                    f"The store {self._path.parent} could not be written ({cause}); nothing was changed. Let the other "
                    "process end, or make room on the disk, and try again."
                ) from cause
            raise

    @contextmanager
    def at_one_time(self) -> Iterator[None]:
        """Lets a block see the database as it is when the block first reads, whoever writes meanwhile."""
        connection = self.connection
        connection.execute("BEGIN")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")

    def get(self, name: str) -> str | None:
        """Returns a value of the meta table.

        Args:
            name: Its name.
        """
        row = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def put(self, name: str, value: str) -> None:
        """Sets a value of the meta table.

        Args:
            name: Its name.
            value: What it shall be.
        """
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def present(self, table: str, hashes: Iterable[bytes]) -> set[bytes]:
        """Returns those of the hashes that a table holds.

        Args:
            table: "subjects", "pending" or "tombstones".
            hashes: Keyed hashes of subjects.
        """
        return {row[0] for row in self.look_up(table, "hash", hashes)}

    def look_up(self, table: str, columns: str, hashes: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        """Returns what a table holds of subjects.

        Args:
            table: "subjects", "pending" or "tombstones".
            columns: Which columns.
            hashes: Keyed hashes of subjects.
        """
        asked = iter(hashes)
        while chunk := list(islice(asked, _CHUNK)):
            marks = ",".join("?" * len(chunk))
            yield from self.connection.execute(f"SELECT {columns} FROM {table} WHERE hash IN ({marks})", chunk)

    def truncate_log(self, patience: float = 2.0) -> None:
        """Brings the write-ahead log into the database and empties it, so that nothing erased is left in it.

        While another process reads, it cannot be emptied; the next erasure or opening does it then.

        Args:
            patience: How long to wait for readers, in seconds.
        """
        log = self._path.with_name(f"{FILE}-wal")
        if not log.exists() or log.stat().st_size == 0:
            return
        self.connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.connection.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000}")

    def clear_free_pages(self) -> None:
        """Writes the database anew, so that no page has the copies that SQLite leaves of rows which it moves.

        Raises:
            StoreError: There is no room on the disk, which has to have it twice; nothing is lost.
        """
        self.connection.execute("VACUUM")
        self.truncate_log()

    def close(self) -> None:
        """Closes the connections of this process's threads."""
        process = os.getpid()
        for owner in [owner for owner in self._connections if owner[0] == process]:
            self._connections.pop(owner).close()

    def _check_format(self, create: bool) -> None:
        connection = self.connection
        # somebody else's database must not be changed
        if create and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            connection.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {FORMAT}")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found != FORMAT:
            raise StoreError(
                f"The ledger {self._path} has format {found}, this version of lightning_s3t reads {FORMAT}. Use the "
                "version that made it."
            )
