"""Erasure: first noted in the transaction that revokes, then done, then recorded; a crash only delays it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lightning_s3t.plan import UnitId
from lightning_s3t.store.files import unlink_all
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
        if row is not None:
            path = str(snapshot_path(store, row[0]))
            connection.execute("INSERT OR REPLACE INTO erasures VALUES (?, ?)", (path, request))
        connection.execute("INSERT OR REPLACE INTO erasures SELECT path, ? FROM files WHERE unit = ?", (request, unit))
        connection.execute("DELETE FROM files WHERE unit = ?", (unit,))
        connection.execute("DELETE FROM units WHERE unit = ?", (unit,))


def erase_pending(ledger: Ledger, store: Path) -> None:
    """Removes every file that is noted for erasure, then records that, in the receipts too.

    Args:
        ledger: The ledger.
        store: The store's folder.
    """
    if ledger.connection.execute("SELECT 1 FROM erasures LIMIT 1").fetchone() is None:
        return
    with ledger.transaction() as connection:
        rows = connection.execute("SELECT path, request FROM erasures ORDER BY request, path").fetchall()
        needed = _needed(connection, store)
        by_request: dict[int | None, list[Path]] = {}
        for path, request in rows:
            if path not in needed:
                by_request.setdefault(request, []).append(Path(path))
        for request, paths in by_request.items():
            count, size = unlink_all(paths)
            if request is not None and count:
                _record(connection, request, count, size)
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
            # its record, if there is one, is of an earlier training: only what the attempt wrote goes
            connection.execute(
                "INSERT OR REPLACE INTO erasures SELECT path, NULL FROM files WHERE unit = ?",
                (attempt_name(unit),),
            )
            connection.execute("DELETE FROM files WHERE unit = ?", (attempt_name(unit),))
        connection.execute("DELETE FROM attempts")
        needed = _needed(connection, store)
        for path in (store / FOLDER).iterdir():
            if str(path) not in needed:
                connection.execute("INSERT OR IGNORE INTO erasures VALUES (?, NULL)", (str(path),))
    erase_pending(ledger, store)


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
