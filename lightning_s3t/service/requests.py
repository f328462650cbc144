"""Requests at the control server: how its clients ask, cancel and refuse, and the state and receipt of a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.service.bodies import RequestState
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.store.keys.signing import read_private_key, sign_document


class Requests:
    """The requests of a store.

    Args:
        store: The opened store.
        signing_key: The file with the private key that signs receipts; None to leave them unsigned.

    Raises:
        ConfigurationError: The key cannot be read.
    """

    def __init__(self, store: Store, signing_key: Path | None = None) -> None:
        self.store = store
        self._key = read_private_key(signing_key) if signing_key is not None else None

    @property
    def signs(self) -> bool:
        """Whether receipts are signed."""
        return self._key is not None

    @property
    def waits_for_fit(self) -> bool:
        """Whether requests wait for the next fit, so that they have no names and no times."""
        return self.store.manifest.method.waits

    def ask(
        self,
        request_id: str,
        subjects: Sequence[str | int],
        at: datetime | None = None,
        strict: bool = True,
        received: date | None = None,
    ) -> RequestState:
        """Forget subjects, now or later; a retry does not count twice.

        Args:
            request_id: The caller's name for the request.
            subjects: Their ids.
            at: When to carry it out; immediately if it is None or past.
            strict: Refuse ids that the store has never seen.
            received: The day on which the letter came; None for today.

        Raises:
            HTTPException: The day of the letter is in the future.
        """
        now, store = datetime.now(timezone.utc), self.store
        if received is not None and received > now.date():
            raise HTTPException(422, "not_received")
        waits = self.waits_for_fit
        if waits and received is not None:  # as `forget` does, which knows of no letters
            count = store.schedule(subjects, now, strict, received=received)
            return RequestState(request_id=request_id, state="waiting", subjects=count)
        if at is not None and not waits and (at > now or store.scheduled_request(request_id)):
            store.schedule(subjects, at, strict, request_id, received=received)
            return self.state_of(request_id)
        done = store.forget(subjects, strict, None if waits else request_id)
        if isinstance(done, Ticket):
            return RequestState(request_id=request_id, state="waiting", subjects=done.subjects)
        return self._carried_out(request_id, done)

    def end(self, request_id: str, reason: str = "") -> RequestState:
        """Cancel a scheduled request; or refuse one, scheduled or not, for a reason.

        Args:
            request_id: The caller's name for the request.
            reason: The reason to refuse it; "" to cancel it.

        Raises:
            HTTPException: The request was carried out, or there is none to cancel.
        """
        if self.store.receipt_of(request_id) is not None:
            raise HTTPException(409, "carried_out")
        if reason:
            self.store.refuse_request(request_id, reason)
        elif self.state_of(request_id).state == "carried_out":
            raise HTTPException(409, "carried_out")
        else:
            self.store.cancel_request(request_id)
        return self.state_of(request_id)

    def state_of(self, request_id: str) -> RequestState:
        """Return the state of a request.

        Args:
            request_id: The caller's name for the request.

        Raises:
            HTTPException: The request does not exist.
        """
        record = self.store.receipt_of(request_id)
        if record is not None:
            return self._carried_out(request_id, record)
        found = self.store.scheduled_request(request_id)
        if found is None:
            raise HTTPException(404, "unknown_request")
        return RequestState(
            request_id=request_id,
            state="carried_out" if found.state == "carried out" else found.state,
            due=found.due or None,
            subjects=found.subjects,
            reason=found.reason or None,
            received=found.received or None,
        )

    def document_of(self, record: RequestRecord) -> dict[str, Any]:
        """Return the receipt of a request as a JSON document for the person who asked, signed if there is a key.

        Args:
            record: The record of the request.
        """
        found: dict[str, Any] = json.loads(record.receipt.to_json())
        return sign_document(found, self._key) if self._key is not None else found

    def _carried_out(self, request_id: str, record: RequestRecord) -> RequestState:
        return RequestState(
            request_id=request_id, state="carried_out", subjects=record.subjects, receipt=self.document_of(record)
        )
