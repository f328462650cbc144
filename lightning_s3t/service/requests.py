"""Requests at the control door: how the API and the desk ask, cancel and refuse, and the state of a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from fastapi import HTTPException

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.service.bodies import RequestState
from lightning_s3t.store import RequestRecord, Store


def waits_for_fit(store: Store) -> bool:
    """Return whether requests wait for the next fit, so that they have no names and no times.

    Args:
        store: The opened store.
    """
    return store.manifest.method.response == "replace"


def ask(
    store: Store, request_id: str, subjects: Sequence[str | int], at: datetime | None, strict: bool
) -> RequestState:
    """Forget subjects, now or later; a retry does not count twice.

    Args:
        store: The opened store.
        request_id: The caller's name for the request.
        subjects: Their ids.
        at: When to carry it out; immediately if it is None or past.
        strict: Refuse ids that the store has never seen.
    """
    waits = waits_for_fit(store)
    if at is not None and not waits and (at > datetime.now(timezone.utc) or store.scheduled_request(request_id)):
        store.schedule(subjects, at, strict, request_id)
        return state_of(store, request_id)
    done = store.forget(subjects, strict, None if waits else request_id)
    if isinstance(done, Ticket):
        return RequestState(request_id=request_id, state="waiting", subjects=done.subjects)
    return _carried_out(request_id, done)


def end(store: Store, request_id: str, reason: str = "") -> RequestState:
    """Cancel a scheduled request; or refuse one, scheduled or not, for a reason.

    Args:
        store: The opened store.
        request_id: The caller's name for the request.
        reason: The reason to refuse it; "" to cancel it.

    Raises:
        HTTPException: The request was carried out, or there is none to cancel.
    """
    if store.receipt_of(request_id) is not None:
        raise HTTPException(409, "carried_out")
    if reason:
        store.refuse_request(request_id, reason)
    elif state_of(store, request_id).state == "carried_out":
        raise HTTPException(409, "carried_out")
    else:
        store.cancel_request(request_id)
    return state_of(store, request_id)


def state_of(store: Store, request_id: str) -> RequestState:
    """Return the state of a request.

    Args:
        store: The opened store.
        request_id: The caller's name for the request.

    Raises:
        HTTPException: The request does not exist.
    """
    record = store.receipt_of(request_id)
    if record is not None:
        return _carried_out(request_id, record)
    found = store.scheduled_request(request_id)
    if found is None:
        raise HTTPException(404, "unknown_request")
    return RequestState(
        request_id=request_id,
        state="carried_out" if found.state == "carried out" else found.state,
        due=found.due or None,
        subjects=found.subjects,
        reason=found.reason or None,
    )


def document_of(record: RequestRecord) -> dict[str, Any]:
    """Return the receipt of a request as a JSON document, for the person who asked.

    Args:
        record: The record of the request.
    """
    found: dict[str, Any] = json.loads(record.receipt.to_json())
    return found


def _carried_out(request_id: str, record: RequestRecord) -> RequestState:
    return RequestState(
        request_id=request_id, state="carried_out", subjects=record.subjects, receipt=document_of(record)
    )
