"""Tombstones: who must never be trained on again, and who is to get one later."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from lightning_s3t.plan import Place

Burial = tuple[bytes, Place]


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
