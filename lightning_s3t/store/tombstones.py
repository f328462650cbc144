"""Tombstones: who must never be trained on again, and who is to get one later."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from lightning_s3t.plan import Place
from lightning_s3t.store.legible import legible

Burial = tuple[bytes, Place]


def total_before(connection: sqlite3.Connection, request: int) -> int:
    """Returns how many are forgotten before a request: what the request before says, which is faster than counting.

    Args:
        connection: The ledger's.
        request: The request's number.
    """
    told = told_total(connection, request - 1)
    return told if told is not None else connection.execute("SELECT COUNT(*) FROM tombstones").fetchone()[0]


def told_total(connection: sqlite3.Connection, request: int) -> int | None:
    """Returns how many were forgotten after a request, as its event says; None if there is none, or it does not say.

    Args:
        connection: The ledger's.
        request: The request's number.
    """
    query = "SELECT body FROM events WHERE request = ? AND kind = 'request'"
    row = connection.execute(query, (request,)).fetchone()
    with legible(f"Request {request}"):
        total: int | None = json.loads(row[0]).get("forgotten") if row else None
    return total


def note_pending(connection: sqlite3.Connection, rows: Iterable[tuple[bytes, str, int, int]]) -> None:
    """Notes subjects that are to be forgotten later, unless they are forgotten already; within a transaction.

    Args:
        connection: In a transaction.
        rows: Keyed hashes, times, shards and slices. Of two times for a subject, the earlier counts.
    """
    connection.executemany(
        "INSERT INTO pending SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE hash = ?1) "
        "ON CONFLICT (hash) DO UPDATE SET due = min(due, excluded.due)",
        rows,
    )


def bury(connection: sqlite3.Connection, rows: Iterable[Burial], request: int) -> None:
    """Gives subjects a tombstone, and takes them from the registry and from the queue; within a transaction.

    Args:
        connection: In a transaction.
        rows: Keyed hashes with the places that their data is in.
        request: The number of the request.
    """
    found = [(hash_, request, place.shard, place.slice) for hash_, place in rows]
    connection.executemany("INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?, ?)", found)
    hashes = [(row[0],) for row in found]
    connection.executemany("DELETE FROM subjects WHERE hash = ?", hashes)
    connection.executemany("DELETE FROM pending WHERE hash = ?", hashes)
