"""Erasure: first noted in the transaction that revokes, then done, then recorded; a crash only delays it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lightning_s3t.plan import UnitId
from lightning_s3t.store.files import size_of, unlink_all
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.receipt import Receipt
from lightning_s3t.store.snapshots import FOLDER, snapshot_path


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
        paths = [str(snapshot_path(store, row[0]))] if row is not None else []
        paths += [path for (path,) in connection.execute("SELECT path FROM files WHERE unit = ?", (unit,))]
        queue_paths(connection, paths, request)
        connection.execute("DELETE FROM files WHERE unit = ?", (unit,))
        connection.execute("DELETE FROM units WHERE unit = ?", (unit,))


def queue_paths(connection: sqlite3.Connection, paths: Iterable[str], request: int | None) -> None:
    """Notes files for erasure; within the caller's transaction.

    Args:
        connection: In a transaction.
        paths: The files.
        request: The number of the request that they go for; None if it is no request's.
    """
    rows = [(path, request, size_of(Path(path))) for path in paths]
    connection.executemany("INSERT OR REPLACE INTO erasures VALUES (?, ?, ?)", rows)


def erase_pending(ledger: Ledger, store: Path) -> None:
    """Removes every file that is noted for erasure, then records that, in the receipts too.

    Args:
        ledger: The ledger.
        store: The store's folder.
    """
    if ledger.connection.execute("SELECT 1 FROM erasures LIMIT 1").fetchone() is None:
        return
    with ledger.transaction() as connection:
        needed = _needed(connection, store)
        rows = connection.execute("SELECT path, request, bytes FROM erasures ORDER BY request, path").fetchall()
        doomed = [(Path(path), request, size) for path, request, size in rows if path not in needed]
        unlink_all(path for path, _, _ in doomed)
        erased: dict[int, list[int]] = {}
        for _, request, size in doomed:
            if request is not None and size is not None:
                erased.setdefault(request, []).append(size)
        for request, sizes in erased.items():
            _record(connection, request, len(sizes), sum(sizes))
        connection.execute("DELETE FROM erasures")
    ledger.truncate_log()


def clean_up(ledger: Ledger, store: Path) -> None:
    """Clears away what a fit that was cut has left: its checkpoints, snapshots that no unit owns, half-written files.

    Only for the holder of the fit lock: files of a fit in progress look the same.

    Args:
        ledger: The ledger.
        store: The store's folder.
    """
    with ledger.transaction() as connection:
        for (unit,) in connection.execute("SELECT unit FROM attempts").fetchall():
            drop_attempt(connection, unit)  # a record of the unit, if there is one, is of an earlier training
        present = {str(path) for path in (store / FOLDER).iterdir()}
        queue_paths(connection, present - _needed(connection, store), None)
    erase_pending(ledger, store)


def drop_attempt(connection: sqlite3.Connection, unit: str) -> None:
    """Takes an attempt out of the ledger and notes its files for erasure; within the caller's transaction.

    Args:
        connection: In a transaction.
        unit: The unit as text.
    """
    name = attempt_name(unit)
    paths = [path for (path,) in connection.execute("SELECT path FROM files WHERE unit = ?", (name,))]
    queue_paths(connection, paths, None)
    connection.execute("DELETE FROM files WHERE unit = ?", (name,))
    connection.execute("DELETE FROM attempts WHERE unit = ?", (unit,))


def attempt_name(unit: str) -> str:
    """Returns the name that an attempt's files are registered under until it is committed.

    Args:
        unit: The unit as text.
    """
    return f"attempt:{unit}"


def _needed(connection: sqlite3.Connection, store: Path) -> set[str]:
    # two units may have equal snapshots: a file goes only when nobody needs it
    digests = [row[0] for row in connection.execute("SELECT snapshot FROM units")]
    digests += [row[0] for row in connection.execute("SELECT value FROM meta WHERE name = 'base'")]
    files = {row[0] for row in connection.execute("SELECT path FROM files")}
    return {str(snapshot_path(store, digest)) for digest in digests} | files


def _record(connection: sqlite3.Connection, request: int, count: int, size: int) -> None:
    row = connection.execute("SELECT receipt FROM requests WHERE number = ?", (request,)).fetchone()
    receipt = Receipt.from_json(row[0])
    receipt = replace(receipt, erased_files=receipt.erased_files + count, erased_bytes=receipt.erased_bytes + size)
    connection.execute("UPDATE requests SET receipt = ? WHERE number = ?", (receipt.to_json(), request))
