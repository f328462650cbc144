"""Scheduled requests, and the check that the table of waiting subjects matches the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_s3t.core.events import Cancellation, Event, Schedule
from lightning_s3t.core.units import Cell
from lightning_s3t.errors import StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.keyring import Keyring

ScheduleState = Literal["scheduled", "cancelled", "carried out"]


@dataclass(frozen=True)
class ScheduledRequest:
    """A scheduled request that its caller has named.

    Attributes:
        request_id: The name.
        state: Whether it waits, was cancelled, or was carried out.
        due: When to carry it out (UTC, ISO 8601); "" if all of its subjects had been forgotten before.
        subjects: Number of recorded subjects.
        asked: A keyed digest of its subjects.
        alone: The keyed hashes of those who wait for it and for no other scheduled request.
    """

    request_id: str
    state: ScheduleState
    due: str
    subjects: int
    asked: str | None
    alone: frozenset[bytes]


def find_scheduled(store: Backend, keyring: Keyring, request_id: str) -> ScheduledRequest | None:
    """Return a scheduled request; within a transaction or a consistent read.

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
    keyring.refresh()
    found: tuple[int, Schedule] | None = None
    cancelled = False
    named: dict[str, int] = {}  # the position of each by its name
    waits_for: dict[bytes, set[int]] = {}
    for event in listing:
        if event.kind == "schedule":
            body = event.read(Schedule)
            if body.request_id == request_id:
                found = event.position, body
            if body.request_id is not None:
                named[body.request_id] = event.position
            for hash_, _, _ in body.pending:
                waits_for.setdefault(keyring.renew(bytes.fromhex(hash_), body.layers), set()).add(event.position)
        elif event.kind == "cancellation":
            ended = event.read(Cancellation)
            cancelled = cancelled or ended.request_id == request_id
            position = named.get(ended.request_id or "")
            for hash_ in ended.pending if position is None else ():
                waits_for.pop(keyring.renew(bytes.fromhex(hash_), ended.layers), None)
            for others in waits_for.values() if position is not None else ():
                others.discard(position)
    if found is None:
        return None
    position, body = found
    mine = {keyring.renew(bytes.fromhex(hash_), body.layers) for hash_, _, _ in body.pending}
    mine = {hash_ for hash_ in mine if position in waits_for.get(hash_, ())}
    waiting = store.ledger.waiting(mine)
    state: ScheduleState = "cancelled" if cancelled else "scheduled" if waiting else "carried out"
    if state == "carried out" and not store.ledger.forgotten(mine) and body.pending:
        state = "cancelled"  # all of its subjects were forgotten by other requests
    due = min((time for _, time, _ in body.pending), default="")
    alone = frozenset(hash_ for hash_ in waiting if waits_for[hash_] == {position})
    return ScheduledRequest(request_id, state, due, len(body.pending), body.asked, alone)


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
