"""The common part of SQL ledgers: what is the same in every dialect, but for the placeholder of a value."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lightning_s3t.core.events import GENESIS, MarkKind
from lightning_s3t.core.units import Cell
from lightning_s3t.store.keys.identities import read_keys
from lightning_s3t.store.ledgers.ledger import Ledger, Mark, OwnedFile, Tombstone


class SqlLedger(Ledger):
    """A ledger with the same table names in every database.

    Args:
        folder: The store.
    """

    _value: ClassVar[str]
    """The placeholder of a value."""
    _among: ClassVar[str]
    """The condition that a text is among those of an `_array`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tag_key: bytes | None = None

    @abstractmethod
    def _do(self, query: str, *values: Any) -> object:
        """Run a statement."""

    @abstractmethod
    def _rows(self, query: str, *values: Any) -> list[Any]:
        """Return all rows of a query."""

    @abstractmethod
    def _stream(self, query: str) -> Iterator[Any]:
        """Return rows that may be too many for the memory; outside of a block all at once."""

    @abstractmethod
    def _array(self, values: Collection[str]) -> Any:
        """Return texts as one value, for `_among`."""

    @abstractmethod
    def _give(self, path: str, owner: str, evidence: str) -> None:
        """Make a file an owner's alone."""

    @abstractmethod
    def _disown(self, owners: Collection[str]) -> list[OwnedFile]:
        """Remove the files of owners, and return them."""

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
    def scheduled(self) -> Iterator[tuple[bytes, str, Cell]]:
        return self._stream("SELECT hash, due, cell FROM pending")

    @override
    def due(self, time: str) -> list[Tombstone]:
        return self._rows(f"SELECT hash, cell FROM pending WHERE due <= {self._value}", time)

    @override
    def tombstones(self) -> Iterator[tuple[bytes, int, Cell]]:
        return self._stream("SELECT hash, request, cell FROM tombstones")

    @override
    def newest_requests(self, restrictions: bool = True) -> dict[Cell, int]:
        found: dict[Cell, int] = dict(self._rows("SELECT cell, MAX(request) FROM tombstones GROUP BY cell"))
        kinds = ("rectified", "restricted") if restrictions else ("rectified",)
        query = f"SELECT cell, MAX(number) FROM marks WHERE kind {self._among} GROUP BY cell"
        for cell, number in self._rows(query, self._array(kinds)):
            found[cell] = max(number, found.get(cell, 0))
        return found

    @override
    def lacks(self, cells: Collection[Cell]) -> bool:
        forgotten = f"SELECT 1 FROM tombstones WHERE cell {self._among} LIMIT 1"
        restricted = f"SELECT 1 FROM marks WHERE cell {self._among} AND kind = 'restricted' LIMIT 1"
        return any(self._rows(query, self._array(cells)) for query in (forgotten, restricted))

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
    def marks(self, kind: MarkKind | None = None) -> list[Mark]:
        query = "SELECT kind, hash, number, cell FROM marks"
        rows = self._rows(query) if kind is None else self._rows(f"{query} WHERE kind = {self._value}", kind)
        return [Mark(*row) for row in rows]

    @override
    def marks_of(self, hashes: Iterable[bytes], kind: MarkKind) -> list[Mark]:
        rows = self._look_up("kind, hash, number, cell FROM marks WHERE hash", hashes)
        return [Mark(*row) for row in rows if row[0] == kind]

    @override
    def head(self) -> tuple[int, str]:
        rows = self._rows("SELECT position, digest FROM events ORDER BY position DESC LIMIT 1")
        return rows[0] if rows else (0, GENESIS)

    @override
    def digest_at(self, position: int) -> str | None:
        found: str | None = self._first(f"SELECT digest FROM events WHERE position = {self._value}", position)
        return found

    @override
    def request_named(self, request_id: str) -> int | None:
        query = f"SELECT request FROM events WHERE name = {self._value} ORDER BY position LIMIT 1"
        found: int | None = self._first(query, request_id)
        return found

    @override
    def forgotten_after(self, request: int) -> int | None:
        query = f"SELECT forgotten FROM events WHERE request = {self._value} AND kind = 'request'"
        found: int | None = self._first(query, request)
        return found

    @override
    def replicas_behind(self, request: int) -> dict[str, float]:
        return dict(self._rows(f"SELECT id, max_staleness FROM replicas WHERE request < {self._value}", request))

    @override
    def reached(self, cells: Collection[Cell]) -> list[str]:
        rows = self._rows(f"SELECT DISTINCT artifact FROM cells WHERE cell {self._among}", self._array(cells))
        return [name for (name,) in rows]

    @override
    def reached_since(self, cells: Collection[Cell], request: int) -> bool:
        where = f"WHERE cell {self._among} AND"
        queries = (
            f"SELECT 1 FROM tombstones {where} request > {self._value} LIMIT 1",
            f"SELECT 1 FROM marks {where} number > {self._value} AND kind <> 'awaiting' LIMIT 1",
        )
        return any(self._rows(query, self._array(cells), request) for query in queries)

    @override
    def ages(self) -> dict[str, int]:
        return dict(self._rows("SELECT name, as_of FROM artifacts"))

    @override
    def index(self) -> Iterator[tuple[Cell, str]]:
        return self._stream("SELECT cell, artifact FROM cells")

    @override
    def registered(self) -> Iterator[tuple[bytes, int, int]]:
        return self._stream("SELECT hash, band, generation FROM subjects")

    @override
    def attempts(self, name: str | None = None) -> list[str]:
        query = "SELECT name FROM attempts"
        rows = self._rows(query) if name is None else self._rows(f"{query} WHERE name = {self._value}", name)
        return [found for (found,) in rows]

    @override
    def drop_attempts(self, names: Collection[str]) -> list[OwnedFile]:
        self._do(f"DELETE FROM attempts WHERE name {self._among}", self._array(names))
        return self._disown([owner_of_attempt(name) for name in names])

    @override
    def own(self, path: str, attempt: str | None = None, evidence: str = "") -> None:
        self._give(path, owner_of_attempt(attempt) if attempt is not None else "", evidence)

    @override
    def needed(self, paths: Iterable[str]) -> set[str]:
        by_tag = {self._tag(path): path for path in paths}
        return {by_tag[tag] for (tag,) in self._look_up("DISTINCT tag FROM files WHERE tag", by_tag)}

    @override
    def remove_exports(self, names: Collection[str]) -> list[OwnedFile]:
        self._do(f"DELETE FROM exports WHERE name {self._among}", self._array(names))
        return self._disown([owner_of_export(name) for name in names])

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
        return self._first(query) or 0

    def _first(self, query: str, *values: Any) -> Any:
        rows = self._rows(query, *values)
        return rows[0][0] if rows else None

    def _tag(self, text: str) -> bytes:
        # keyed, since a database may keep copies; by the first key, which a rotation does not change. A path may be
        # longer than an index takes
        if self._tag_key is None:
            self._tag_key = read_keys(self._folder)[0]
        return hmac.digest(self._tag_key, b"path\0" + os.fsencode(text), hashlib.sha256)[:16]


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
