"""The history of a store, as its events tell it: what was revoked, and the receipts of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_s3t.core.events import Damage, Erasure, Event, Kind, Request, first_break
from lightning_s3t.core.receipts import Receipt
from lightning_s3t.core.units import UnitId
from lightning_s3t.store.ledger import Ledger, ledger_errors
from lightning_s3t.store.units import parse_unit


def record(
    ledger: Ledger, kind: Kind, request: int | None, body: Mapping[str, Any], forgotten: int | None = None
) -> None:
    """Add an event to the chain; within a transaction.

    Args:
        ledger: The ledger.
        kind: What happened.
        request: The number of the request that it belongs to, or None.
        body: What happened in full, JSON-ready.
        forgotten: How many are forgotten after a request.
    """
    ledger.append(Event.after(ledger.head(), kind, request, body), forgotten)


def read_receipt(ledger: Ledger, request: int) -> Receipt:
    """Return the receipt of a request: what its events say.

    Args:
        ledger: The ledger.
        request: The request's number.

    Raises:
        StoreError: The history of the request was damaged or changed.
    """
    with ledger_errors(f"Request {request}"):
        first, *later = ledger.events(request=request)
        asked, erasures = first.read(Request), [event.read(Erasure) for event in later]
        last = later[-1] if later else first
        return Receipt(
            request=request,
            time=first.time,
            subjects=asked.subjects,
            already_forgotten=asked.already_forgotten,
            unknown=asked.unknown,
            revoked=asked.revoked,
            exports=asked.exports,
            erased_files=sum(erasure.files for erasure in erasures),
            erased_bytes=sum(erasure.bytes for erasure in erasures),
            serving=asked.serving,
            guarantee=asked.guarantee,
            isolation=asked.isolation,
            versions=asked.versions,
            position=last.position,
            chain=last.digest,
        )


def has_given(ledger: Ledger, receipt: Receipt) -> bool:
    """Return whether the history, unchanged, has the request that a receipt is of.

    Args:
        ledger: The ledger.
        receipt: The receipt; files that were erased after it was given may be missing in it.
    """
    known = 1 <= receipt.request <= ledger.watermark()
    if not known or chain_digest(ledger, receipt.position) != receipt.chain:
        return False
    kept = read_receipt(ledger, receipt.request)
    later = {name: getattr(receipt, name) for name in ("position", "chain", "erased_files", "erased_bytes")}
    return receipt in (kept, replace(kept, **later)) and receipt.erased_files <= kept.erased_files


def ever_revoked(ledger: Ledger) -> set[UnitId]:
    """Return every unit that a request or damage has ever taken away; it may have been trained again since.

    Args:
        ledger: The ledger.
    """
    found: set[str] = set()
    with ledger_errors("The history of requests"):
        for event in ledger.events():
            if event.kind == "request":
                found.update(event.read(Request).revoked)
            elif event.kind == "damage":
                found.update(event.read(Damage).units)
        return {parse_unit(name) for name in found}


def chain_digest(ledger: Ledger, position: int) -> str | None:
    """Return the digest at a position of the chain of events.

    None beyond the chain's end, and if an event up to there is not what it was when it was written.

    Args:
        ledger: The ledger.
        position: Counted from 1.
    """
    events = [event for event in ledger.events() if event.position <= position]
    if len(events) != position or not events or first_break(events) is not None:
        return None
    return events[-1].digest
