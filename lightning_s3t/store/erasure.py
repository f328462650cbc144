"""Erasure: first noted in the transaction that revokes, then done, then recorded; a crash only delays it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store.chain import append
from lightning_s3t.store.files import size_of, unlink_all
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.snapshots import FOLDER, snapshot_name
from lightning_s3t.store.units import read_scores

# what holds a revoked unit's digests, provenance and file names
_SCRUBBED = ("units", "files", "attempts")


def queue_units(connection: sqlite3.Connection, store: Path, units: Iterable[UnitId], request: int | None) -> None:
    """Takes units out of the ledger and notes their files for erasure; within the caller's transaction.

    Args:
        connection: In a transaction.
        store: The store's folder.
        units: The units.
        request: The number of the request that revokes them; None if they are only stale.
    """
    for unit in map(str, units):
        row = connection.execute("SELECT snapshot FROM units WHERE unit = ?", (unit,)).fetchone()
        paths = [snapshot_name(row[0])] if row is not None else []
        paths += [path for (path,) in connection.execute("SELECT path FROM files WHERE unit = ?", (unit,))]
        queue_paths(connection, store, paths, request)
        connection.execute("DELETE FROM files WHERE unit = ?", (unit,))
        connection.execute("DELETE FROM units WHERE unit = ?", (unit,))


def queue_lineages(ledger: Ledger, store: Path, units: Iterable[UnitId]) -> list[UnitId]:
    """Takes units out of the ledger with all that was built on them; within the caller's transaction.

    Args:
        ledger: In a transaction.
        store: The store's folder.
        units: The units.

    Returns:
        All that were taken out.
    """
    tops = set(units)
    gone = [unit for unit in read_scores(ledger) if tops.intersection(unit.lineage)]
    queue_units(ledger.connection, store, gone, None)
    return gone


def queue_paths(connection: sqlite3.Connection, store: Path, paths: Iterable[str], request: int | None) -> None:
    """Notes files for erasure; within the caller's transaction.

    Args:
        connection: In a transaction.
        store: The store's folder.
        paths: The files; those within the store are relative to it, so that all its names for a file are equal however
            it was opened.
        request: The number of the request that they go for; None if it is no request's.
    """
    rows = [(path, request, _size_now(store / path)) for path in paths]
    connection.executemany("INSERT OR REPLACE INTO erasures VALUES (?, ?, ?)", rows)


def erase_pending(ledger: Ledger, store: Path) -> None:
    """Removes every file that is noted for erasure, then records that, in the chain of events too.

    Args:
        ledger: The ledger.
        store: The store's folder.

    Raises:
        StoreError: A file could not be removed. All others are; it stays noted.
    """
    if ledger.connection.execute("SELECT 1 FROM erasures LIMIT 1").fetchone() is None:
        return
    with ledger.transaction() as connection:
        needed = needed_files(connection)
        rows = connection.execute("SELECT path, request, bytes FROM erasures ORDER BY request, path").fetchall()
        doomed = [row for row in rows if row[0] not in needed]
        failed = unlink_all(store / path for path, _, _ in doomed)
        erased: dict[int, list[int]] = {}
        for path, request, size in doomed:
            if request is not None and size is not None and store / path not in failed:
                erased.setdefault(request, []).append(size)
        for request, sizes in erased.items():
            append(connection, "erasure", request, {"files": len(sizes), "bytes": sum(sizes)})
        left = [row for row in doomed if store / row[0] in failed]
        connection.execute("DELETE FROM erasures")
        connection.executemany("INSERT INTO erasures VALUES (?, ?, ?)", left)
        for table in _SCRUBBED:
            _rewrite(connection, table)
    ledger.truncate_log()
    if failed:
        raise StoreError(_failed_message(failed))


def clean_up(ledger: Ledger, store: Path) -> None:
    """Clears away what a fit that was cut has left: its checkpoints, snapshots that no unit owns.

    Only for the holder of the fit lock: files of a fit in progress look the same.

    Args:
        ledger: The ledger.
        store: The store's folder.
    """
    with ledger.transaction() as connection:
        for (unit,) in connection.execute("SELECT unit FROM attempts").fetchall():
            drop_attempt(connection, store, unit)  # a record of the unit, if there is one, is of an earlier training
        present = {f"{FOLDER}/{path.name}" for path in (store / FOLDER).glob("*")}
        queue_paths(connection, store, present - needed_files(connection), None)
    erase_pending(ledger, store)


def drop_attempt(connection: sqlite3.Connection, store: Path, unit: str) -> None:
    """Takes an attempt out of the ledger and notes its files for erasure; within the caller's transaction.

    Args:
        connection: In a transaction.
        store: The store's folder.
        unit: The unit as text.
    """
    name = attempt_name(unit)
    paths = [path for (path,) in connection.execute("SELECT path FROM files WHERE unit = ?", (name,))]
    queue_paths(connection, store, paths, None)
    connection.execute("DELETE FROM files WHERE unit = ?", (name,))
    connection.execute("DELETE FROM attempts WHERE unit = ?", (unit,))


def attempt_name(unit: str) -> str:
    """Returns the name that an attempt's files are registered under until it is committed.

    Args:
        unit: The unit as text.
    """
    return f"attempt:{unit}"


def needed_files(connection: sqlite3.Connection) -> set[str]:
    """Returns the files that units need. Two units may have equal snapshots: a file goes only when nobody needs it.

    Args:
        connection: The ledger's.
    """
    digests = [row[0] for row in connection.execute("SELECT snapshot FROM units")]
    digests += [row[0] for row in connection.execute("SELECT value FROM meta WHERE name = 'base'")]
    files = {row[0] for row in connection.execute("SELECT path FROM files")}
    return {snapshot_name(digest) for digest in digests} | files


def _rewrite(connection: sqlite3.Connection, table: str) -> None:
    # secure_delete clears what is deleted, but not the copies that SQLite leaves in a page when it moves rows to
    # another to keep its tree in balance. Emptying a table frees, and clears, all of its pages.
    rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    connection.execute(f"DELETE FROM {table}")
    if rows:
        connection.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)


def _size_now(path: Path) -> int | None:
    try:
        return size_of(path)
    except OSError:  # must not keep a unit from being revoked: what is wrong with the file shows when it is erased
        return None


def _failed_message(failed: dict[Path, OSError]) -> str:
    shown = "; ".join(f"{path} ({error.strerror})" for path, error in list(failed.items())[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    return (
        f"What was to go is out of the ledger for good and never serves again, but {len(failed)} of its files could "
        f"not be erased: {shown}{more}. Remove the cause and open the store again: the erasure then goes on."
    )
