"""The history of a store, from its events: what was revoked, and the receipts of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from lightning_s3t.core.events import Damage, Erasure, Event, Kind, Merge, Request, first_break
from lightning_s3t.core.receipts import Receipt, RequestRecord
from lightning_s3t.core.units import Cell, UnitId
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.keys.authentication import Change
from lightning_s3t.store.ledgers.ledger import Ledger, ledger_errors
from lightning_s3t.store.units import parse_unit


def record(
    store: Backend,
    kind: Kind,
    request: int | None,
    body: Mapping[str, Any],
    forgotten: int | None = None,
    change: Change | None = None,
) -> None:
    """Add an event to the chain; within a transaction.

    Args:
        store: The store's backend.
        kind: The kind of event.
        request: The number of the request that it belongs to, or None.
        body: The details, JSON-ready.
        forgotten: Number of forgotten subjects after a request.
        change: What it changes in the lists of people, if the caller already has it.
    """
    store.authenticator.append(Event.after(store.ledger.head(), kind, request, body), forgotten, change)


def read_record(store: Backend, request: int) -> RequestRecord:
    """Return the record of a request, from its events.

    Args:
        store: The store's backend.
        request: The request's number.

    Raises:
        StoreError: The history since the request was damaged or changed.
    """
    return read_records(store, request - 1, request)[0]


def read_records(store: Backend, after: int, until: int) -> list[RequestRecord]:
    """Return the records of several requests, in order.

    Args:
        store: The store's backend.
        after: The number of the one before the first.
        until: The number of the last.

    Raises:
        StoreError: The history since the first of them was damaged or changed.
    """
    if after >= until:
        return []
    ledger, own = store.ledger, dict[int, list[Event]]()
    with ledger.at_one_time(), ledger_errors(f"Request {after + 1}"):
        first = next(ledger.events(request=after + 1)).position
        for event in store.authenticator.events_since(first):
            if event.request is not None and after < event.request <= until:
                own.setdefault(event.request, []).append(event)
        return [_record_of(own[request]) for request in range(after + 1, until + 1)]


def has_given(history: Iterable[Event], receipt: Receipt) -> bool:
    """Return whether a history, unchanged up to there, has the request that a receipt is of.

    Args:
        history: All events, in order.
        receipt: The receipt; it may not include files that were erased later.
    """
    events = list(takewhile(lambda event: event.position <= receipt.position, history))
    if len(events) != receipt.position or first_break(events) is not None or events[-1].digest != receipt.chain:
        return False
    own = [event for event in events if event.request == receipt.request]
    if not own:
        return False
    with ledger_errors(f"Request {receipt.request}"):
        return receipt.receipt == _record_of(own).receipt


def _record_of(events: Sequence[Event]) -> RequestRecord:
    first, *later = events
    asked, erasures = first.read(Request), [event.read(Erasure) for event in later]
    return RequestRecord(
        kind=asked.kind,
        request=first.request or 0,
        request_id=asked.request_id,
        time=first.time,
        subjects=asked.subjects,
        already_forgotten=asked.already_forgotten,
        already_restricted=asked.already_restricted,
        unknown=asked.unknown,
        revoked_units=len(asked.revoked),
        set_aside_units=len(asked.set_aside),
        returned_units=len(asked.returned),
        subtracted_rows=asked.subtracted_rows,
        erased_files=sum(erasure.files for erasure in erasures),
        erased_bytes=sum(erasure.bytes for erasure in erasures),
        missing_files=sum(erasure.missing for erasure in erasures),
        left_files=erasures[-1].left if erasures else 0,
        method=asked.method,
        guarantee=asked.guarantee,
        isolation=asked.isolation,
        versions=asked.versions,
        position=events[-1].position,
        chain=events[-1].digest,
        revoked=asked.revoked,
        serving=asked.serving,
        exports=asked.exports,
        set_aside=asked.set_aside,
        returned=asked.returned,
        certificate=asked.certificate,
    )


def requests_since(ledger: Ledger, position: int) -> Iterator[Event]:
    """Return the requests that came after an event, in order.

    Args:
        ledger: The ledger.
        position: The position of the event.
    """
    kinds: tuple[Kind, ...] = ("request",)
    return ledger.events(position, kinds=kinds)


def corrected_since(ledger: Ledger, position: int) -> set[Cell]:
    """Return the cells with data that was corrected after an event.

    Args:
        ledger: The ledger.
        position: The position of the event.
    """
    found: set[Cell] = set()
    with ledger_errors("The history of requests"):
        for event in ledger.events(after=position, kinds=("request", "merge")):
            if event.kind == "request":
                found.update(event.read(Request).cells)
            else:
                found = set(map(event.read(Merge).moved, found))
    return found


def corrected_people(ledger: Ledger, people: Collection[bytes], position: int) -> set[bytes]:
    """Return those of some subjects whose data was corrected after an event.

    Args:
        ledger: The ledger.
        people: The keyed hashes of the subjects. Who is restricted may be missing in the result.
        position: The position of the event.
    """
    first = next(requests_since(ledger, position), None)
    if first is None or first.request is None:
        return set()
    found = {mark.hash for mark in ledger.marks_of(people, "rectified") if mark.number >= first.request}
    # a correction during a restriction has the number of the restriction, which may be older
    released = [mark for mark in ledger.marks_of(people, "released") if mark.number >= first.request]
    if released:
        corrected = corrected_since(ledger, position)
        found |= {mark.hash for mark in released if mark.cell in corrected}
    return found


def ever_revoked(ledger: Ledger) -> set[UnitId]:
    """Return every unit that a request or damage has ever taken away; it may have been trained again since.

    Args:
        ledger: The ledger.
    """
    found: set[str] = set()
    kinds: tuple[Kind, ...] = ("request", "damage")
    with ledger_errors("The history of requests"):
        for event in ledger.events(kinds=kinds):
            found.update(event.read(Request).revoked if event.kind == "request" else event.read(Damage).units)
        return {parse_unit(name) for name in found}


def chain_digest(ledger: Ledger, position: int) -> str | None:
    """Return the digest at a position of the chain of events.

    None beyond the chain's end, or if an event up to there was changed after it was written.

    Args:
        ledger: The ledger.
        position: Counted from 1.
    """
    events = [event for event in ledger.events() if event.position <= position]
    if len(events) != position or not events or first_break(events) is not None:
        return None
    return events[-1].digest
