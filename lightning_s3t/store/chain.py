"""The chain of events: requests, erasures and what else took units away, each bound to all before by a digest."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from lightning_s3t.errors import StoreError
from lightning_s3t.store.ledger import Ledger

Kind = Literal["request", "schedule", "erasure", "damage", "rotation"]
GENESIS = "0" * 64
_COLUMNS = "position, kind, request, time, body, digest"


@dataclass(frozen=True)
class Event:
    """A link of the chain.

    Attributes:
        position: Counted from 1.
        kind: What happened.
        request: The number of the request that it belongs to; None if it is no request's.
        time: When (UTC, ISO 8601). Clocks go wrong: the order is that of the positions.
        body: What happened in full, JSON-ready: no ids and no digests of snapshots.
        digest: SHA-256 of all of the above and of the digest before.
    """

    position: int
    kind: Kind
    request: int | None
    time: str
    body: dict[str, Any]
    digest: str

    def follows(self, previous: str) -> bool:
        """Says whether the event is what it was when it was bound to the one before.

        Args:
            previous: The digest of the one before.
        """
        try:
            return self.digest == _digest(previous, self.position, self.kind, self.request, self.time, self.body)
        except TypeError:  # a bit that says what type a value has
            return False

    def to_json(self) -> str:
        """Returns the event as a line of JSON."""
        return _canonical(vars(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """Reads what `to_json` has written.

        Args:
            line: A line of JSON.

        Raises:
            StoreError: It is none.
        """
        try:
            data = json.loads(line)
            event = cls(**data)
            texts, numbers = (event.kind, event.time, event.digest), (event.position, event.request or 1)
            if not (isinstance(event.body, dict) and all(isinstance(text, str) for text in texts)):
                raise TypeError("a part is of another type")
            if not all(type(number) is int and 0 < number < 2**63 for number in numbers):
                raise ValueError("a number is none, or out of range")
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"No event of a store: {str(line[:60])!s} ({error}).") from error
        return event


def append(connection: sqlite3.Connection, kind: Kind, request: int | None, body: Mapping[str, Any]) -> Event:
    """Adds an event; within the caller's transaction.

    Args:
        connection: In a transaction.
        kind: What happened.
        request: The number of the request that it belongs to, or None.
        body: What happened in full, JSON-ready.
    """
    position, previous = head(connection)
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    position, body = position + 1, dict(body)
    event = Event(position, kind, request, time, body, _digest(previous, position, kind, request, time, body))
    insert(connection, event)
    return event


def insert(connection: sqlite3.Connection, event: Event) -> None:
    """Puts an event into the ledger as it is; within the caller's transaction.

    Args:
        connection: In a transaction.
        event: The event.
    """
    row = (event.position, event.kind, event.request, event.time, _canonical(event.body), event.digest)
    connection.execute(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)


def head(connection: sqlite3.Connection) -> tuple[int, str]:
    """Returns the position and the digest of the newest event; 0 and `GENESIS` before the first.

    Args:
        connection: The ledger's.
    """
    row = connection.execute("SELECT position, digest FROM events ORDER BY position DESC LIMIT 1").fetchone()
    return (row[0], row[1]) if row else (0, GENESIS)


def read_events(ledger: Ledger, after: int = 0, request: int | None = None) -> Iterator[Event]:
    """Returns events in order.

    Args:
        ledger: The ledger.
        after: Only those after this position.
        request: Only those of this request.
    """
    chosen, values = ("AND request = ?", [after, request]) if request is not None else ("", [after])
    query = f"SELECT {_COLUMNS} FROM events WHERE position > ? {chosen} ORDER BY position"
    for position, kind, number, time, body, digest in ledger.connection.execute(query, values):
        yield Event(position, kind, number, time, _load(body), digest)


def first_break(events: Iterable[Event]) -> int | None:
    """Returns the position of the first event that does not follow from the one before; None if all do.

    Args:
        events: All of them, in order.
    """
    previous = GENESIS
    for position, event in enumerate(events, start=1):
        if event.position != position or not event.follows(previous):
            return position
        previous = event.digest
    return None


def _digest(previous: str, position: int, kind: str, request: int | None, time: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{previous}\n{_canonical([position, kind, request, time, body])}".encode()).hexdigest()


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _load(body: str) -> dict[str, Any]:
    try:
        found: Any = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        found = None
    # somebody has changed it: what is bound to it no longer follows
    return found if isinstance(found, dict) else {"unreadable": body}
