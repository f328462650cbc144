"""Tombstones: who must never be trained on again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from lightning_s3t.plan import Place

Burial = tuple[bytes, Place]


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
