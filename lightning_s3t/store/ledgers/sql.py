"""The common part of SQL ledgers: reads whose statements are the same in every dialect."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from typing_extensions import override

from lightning_s3t.core.events import GENESIS, MarkKind
from lightning_s3t.store.ledgers.ledger import Ledger, Mark


class SqlLedger(Ledger):
    """A ledger with the same table names in every database."""

    @abstractmethod
    def _rows(self, query: str, *values: Any) -> list[Any]:
        """Return all rows of a query."""

    @abstractmethod
    def _look_up(self, query: str, values: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        """Return the rows of "SELECT query" whose last column is one of the values, for any number of values."""

    @override
    def bands(self, hashes: Iterable[bytes]) -> dict[bytes, int]:
        return dict(self._look_up("hash, band FROM subjects WHERE hash", hashes))

    @override
    def generations(self, hashes: Iterable[bytes]) -> dict[bytes, int]:
        return dict(self._look_up("hash, generation FROM subjects WHERE hash", hashes))

    @override
    def count_generations(self) -> dict[int, int]:
        return dict(self._rows("SELECT generation, COUNT(*) FROM subjects GROUP BY generation ORDER BY generation"))

    @override
    def forgotten(self, hashes: Iterable[bytes]) -> set[bytes]:
        return {hash_ for (hash_,) in self._look_up("hash FROM tombstones WHERE hash", hashes)}

    @override
    def waiting(self, hashes: Iterable[bytes]) -> set[bytes]:
        return {hash_ for (hash_,) in self._look_up("hash FROM pending WHERE hash", hashes)}

    @override
    def schedules(self) -> list[tuple[str, int]]:
        return self._rows("SELECT due, COUNT(*) FROM pending GROUP BY due ORDER BY due")

    @override
    def count_forgotten(self) -> int:
        return self._number("SELECT COUNT(*) FROM tombstones")

    @override
    def count_registered_and_forgotten(self) -> int:
        return self._number("SELECT COUNT(*) FROM subjects JOIN tombstones USING (hash)")

    @override
    def marks_of(self, hashes: Iterable[bytes], kind: MarkKind) -> list[Mark]:
        rows = self._look_up("kind, hash, number, cell FROM marks WHERE hash", hashes)
        return [Mark(*row) for row in rows if row[0] == kind]

    @override
    def head(self) -> tuple[int, str]:
        rows = self._rows("SELECT position, digest FROM events ORDER BY position DESC LIMIT 1")
        return rows[0] if rows else (0, GENESIS)

    @override
    def count_events(self) -> int:
        return self._number("SELECT COUNT(*) FROM events")

    @override
    def all_notes(self) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM notes"))

    @override
    def count_index(self) -> int:
        return self._number("SELECT COUNT(*) FROM cells")

    def _number(self, query: str) -> int:
        found: int | None = self._rows(query)[0][0]
        return found or 0


def owner_of_attempt(name: str) -> str:
    """Return the owner name of an artifact's files until it is added.

    Args:
        name: The artifact's name.
    """
    return f"attempt:{name}"


def owner_aside(place: int | None) -> str:
    """Return the owner name of the files of an artifact that is set aside.

    Args:
        place: Its number among the units that are set aside.
    """
    return f"aside:{place}"


def owner_of_export(name: str) -> str:
    """Return the owner name of an exported copy's files.

    Args:
        name: The copy's name.
    """
    return f"export:{name}"


def parse_body(body: str) -> dict[str, Any]:
    """Return the body of an event; if it was changed, a body that no longer matches the digest.

    Args:
        body: The text that the database has.
    """
    try:
        found: Any = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"unreadable": body}
