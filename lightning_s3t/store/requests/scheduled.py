"""Scheduled and refused requests, and the check that the table of waiting subjects matches the history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from lightning_s3t.core.events import Cancellation, Event, Schedule
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.keys.keyring import Keyring

ScheduleState = Literal["scheduled", "cancelled", "refused", "carried out"]


@dataclass(frozen=True)
class ScheduledRequest:
    """A request that was scheduled, or was refused before it could be.

    Attributes:
        request_id: The caller's name for it; None without a name.
        state: Whether it waits, was cancelled, was refused, or was carried out.
        due: When to carry it out (UTC, ISO 8601); "" if all of its subjects had been forgotten before.
        subjects: Number of recorded subjects.
        asked: A keyed digest of its subjects.
        alone: The keyed hashes of subjects who wait only for this scheduled request.
        noted: When it was recorded (UTC, ISO 8601).
        ended: When it was cancelled or refused; "" if it was not, or if subjects were named instead.
        reason: Why it was refused; "" if it was not.
        received: The day on which the letter came (ISO 8601); "" if it was not given.
        also: The keyed hashes of subjects who wait for other scheduled requests too, with the time of the earliest.
    """

    request_id: str | None
    state: ScheduleState
    due: str
    subjects: int
    asked: str | None
    alone: frozenset[bytes]
    noted: str
    ended: str = ""
    reason: str = ""
    received: str = ""
    also: tuple[tuple[bytes, str], ...] = ()

    @property
    def is_ended(self) -> bool:
        """Whether it was cancelled or refused."""
        return self.state in ("cancelled", "refused")


def find_scheduled(store: Backend, keyring: Keyring, request_id: str) -> ScheduledRequest | None:
    """Return a scheduled or refused request; within a transaction or a consistent read.

    Args:
        store: The store's backend.
        keyring: The store's keys.
        request_id: The caller's name for it.

    Raises:
        StoreError: The history of scheduled requests was changed.
    """
    listing = store.authenticator.listing()
    if not any(event.body.get("request_id") == request_id for event in listing):
        return None
    return next(iter(_Scheduled(keyring, listing).read(store, request_id)), None)


def list_scheduled(store: Backend, keyring: Keyring) -> list[ScheduledRequest]:
    """Return all scheduled and refused requests in order; within a transaction or a consistent read.

    Args:
        store: The store's backend.
        keyring: The store's keys.

    Raises:
        StoreError: The history of scheduled requests was changed.
    """
    return list(_Scheduled(keyring, store.authenticator.listing()).read(store))


class _Scheduled:
    """Scheduled requests as the history records them.

    Args:
        keyring: The store's keys.
        listing: The events behind the tables.
    """

    def __init__(self, keyring: Keyring, listing: Iterable[Event]) -> None:
        keyring.refresh()
        self._events: dict[int, Event] = {}  # the first of each request, by position
        self._dues: dict[int, dict[bytes, str]] = {}  # the subjects of each, with their times
        self._named: dict[str, int] = {}
        self._ended: dict[int, tuple[str, str]] = {}  # when, and why
        self._waits_for: dict[bytes, set[int]] = {}
        self._cells: dict[bytes, Cell] = {}
        self._postponed: tuple[int, set[bytes]] = (0, set())  # by the newest cancellation, with its position
        for event in listing:
            if event.kind == "schedule":
                self._add_schedule(keyring, event, event.read(Schedule))
            elif event.kind == "cancellation":
                self._add_cancellation(keyring, event, event.read(Cancellation))

    def _add_schedule(self, keyring: Keyring, event: Event, body: Schedule) -> None:
        position = event.position
        pending = [(keyring.renew(bytes.fromhex(text), body.layers), due, cell) for text, due, cell in body.pending]
        cells = {hash_: cell for hash_, _, cell in pending}
        before = {hash_: self._cells[hash_] for hash_ in cells if self._waits_for.get(hash_)}
        self._cells |= cells
        if body.request_id is None and cells:
            # a registration or a merge has moved them: they wait for the same requests, at another place
            if all(before.get(hash_, cell) != cell for hash_, cell in cells.items()):
                return
            cancelled_at, postponed = self._postponed
            if cancelled_at == position - 1 and cells.keys() <= postponed:  # they wait for the others of their requests
                return
        self._events[position] = event
        self._dues[position] = {hash_: due for hash_, due, _ in pending}
        if body.request_id is not None:
            self._named[body.request_id] = position
        for hash_ in cells:
            self._waits_for.setdefault(hash_, set()).add(position)

    def _add_cancellation(self, keyring: Keyring, event: Event, body: Cancellation) -> None:
        if body.request_id is None:
            for text in body.pending:
                self._waits_for.pop(keyring.renew(bytes.fromhex(text), body.layers), None)
            return
        position = self._named.setdefault(body.request_id, event.position)
        self._events.setdefault(position, event)
        self._ended.setdefault(position, (event.time, body.reason))
        for hash_ in self._dues.setdefault(position, {}):
            self._waits_for.get(hash_, set()).discard(position)
        pending = {keyring.renew(bytes.fromhex(text), body.layers) for text in body.pending}
        self._postponed = event.position, {hash_ for hash_ in pending if self._waits_for.get(hash_)}

    def read(self, store: Backend, request_id: str | None = None) -> Iterator[ScheduledRequest]:
        """Return all requests, or the one with a given name."""
        positions = [self._named[request_id]] if request_id is not None else list(self._events)
        mine = {
            position: {hash_ for hash_ in self._dues[position] if position in self._waits_for.get(hash_, ())}
            for position in positions
        }
        everybody = set().union(*mine.values())
        waiting, forgotten = store.ledger.waiting(everybody), store.ledger.forgotten(everybody)
        for position in positions:
            yield self._request(position, mine[position], waiting & mine[position], forgotten & mine[position])

    def _request(self, position: int, mine: set[bytes], waiting: set[bytes], forgotten: set[bytes]) -> ScheduledRequest:
        event = self._events[position]
        body = event.read(Schedule) if event.kind == "schedule" else None
        ended, reason = self._ended.get(position, ("", ""))
        state: ScheduleState = "scheduled" if waiting else "carried out"
        if ended:
            state = "refused" if reason else "cancelled"
        elif body is not None and body.pending and not waiting and not forgotten:
            state = "cancelled"  # all of its subjects were forgotten by other requests
        pending = body.pending if body is not None else ()
        return ScheduledRequest(
            str(event.body["request_id"]) if event.body.get("request_id") is not None else None,
            state,
            min((time for _, time, _ in pending), default=""),
            len(pending),
            body.asked if body is not None else None,
            frozenset(hash_ for hash_ in waiting if self._waits_for[hash_] == {position}),
            event.time,
            ended,
            reason,
            (body.received if body is not None else None) or "",
            tuple(self._others(position, waiting)),
        )

    def _others(self, position: int, waiting: set[bytes]) -> Iterator[tuple[bytes, str]]:
        for hash_ in sorted(waiting):
            others = self._waits_for[hash_] - {position}
            if others:
                yield hash_, min(self._dues[other][hash_] for other in others)


def check_scheduled(store: Backend, keyring: Keyring) -> None:
    """Check that no scheduled request was taken out, moved, or made up.

    Args:
        store: The store's backend.
        keyring: The store's keys.

    Raises:
        StoreError: One was.
    """
    ledger = store.ledger
    with ledger.at_one_time():
        keyring.refresh()
        expected: dict[bytes, tuple[str, Cell]] = {}
        for event in store.authenticator.listing():
            _carry_on(expected, store, keyring, event)
        gone = ledger.forgotten(expected)
        found = {hash_: (due, cell) for hash_, due, cell in ledger.scheduled()}
    wrong = {hash_: what for hash_, what in expected.items() if hash_ not in gone}.items() ^ found.items()
    if wrong:
        raise StoreError(
            f"{len({hash_ for hash_, _ in wrong})} scheduled requests of the store {store.folder} do not match its "
            "history: they were changed without the store's key, or the ledger is damaged. Nothing is served. "
            "Restore the ledger from a backup (missing requests are carried out again from the journal)."
        )


def _carry_on(expected: dict[bytes, tuple[str, Cell]], store: Backend, keyring: Keyring, event: Event) -> None:
    try:
        if event.kind == "cancellation":
            cancelled = event.read(Cancellation)
            for hash_ in cancelled.pending:
                expected.pop(keyring.renew(bytes.fromhex(hash_), cancelled.layers), None)
        if event.kind != "schedule":
            return
        scheduled = event.read(Schedule)
        for hash_, due, cell in scheduled.pending:
            renewed = keyring.renew(bytes.fromhex(hash_), scheduled.layers)
            earlier = expected.get(renewed, (due, cell))[0]
            expected[renewed] = (min(due, earlier), cell)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"Event {event.position} of the store {store.folder}, which schedules requests, cannot be read ({error}). "
            "Nothing is served. Restore the ledger from a backup."
        ) from error
