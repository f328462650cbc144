"""What can be asked of a store: to forget people, now or later, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from lightning_s3t.errors import DataError
from lightning_s3t.plan import UnitId, canonical_subject
from lightning_s3t.store.chain import first_break, read_events
from lightning_s3t.store.forgetting import Forgetting
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.legible import legible
from lightning_s3t.store.receipt import Receipt, read_receipt
from lightning_s3t.store.units import newest_request


class DeletionRequests:
    """The part of a store that takes deletion requests.

    Args:
        ledger: The store's ledger.
        forgetting: What carries requests out.
    """

    def __init__(self, ledger: Ledger, forgetting: Forgetting) -> None:
        self._ledger = ledger
        self._forgetting = forgetting

    @property
    def request_number(self) -> int:
        """The number of the newest request, 0 before the first. Cheap enough to ask before every batch."""
        return newest_request(self._ledger)

    def forget(self, subjects: Iterable[Any], strict: bool = True) -> Receipt:
        """Carries a deletion request out: revokes what the subjects reached, for good, and erases it.

        Revoking is one transaction, on disk when it returns: from then on no process can load a revoked unit,
        whatever happens. Erasing follows; a crash only delays it until the store is next opened.

        Args:
            subjects: Their ids. Those forgotten before are counted, and change nothing.
            strict: Refuse a request that names a subject which the store has never seen. Otherwise such a subject
                gets a tombstone too, so that it never enters a later fit.

        Returns:
            The receipt.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: The ledger could not be written, and nothing has changed; or the request is carried out and a
                file could not be erased. The message says which.
            DataError: An id is neither text nor an integer, or `subjects` is no collection of ids.
        """
        return self._forgetting.forget(_canonical(subjects), strict)

    def schedule(self, subjects: Iterable[Any], due: datetime, strict: bool = True) -> int:
        """Notes a deletion request that is to be carried out later: by `forget_due`, or when the store is next opened.

        Args:
            subjects: Their ids. Of two times for a subject, the earlier counts.
            due: When, with a time zone.
            strict: Refuse a request that names a subject which the store has never seen.

        Returns:
            How many subjects were noted; those who are forgotten already are not.

        Raises:
            ConfigurationError: The time has no time zone.
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            DataError: An id is neither text nor an integer, or `subjects` is no collection of ids.
        """
        return self._forgetting.schedule(_canonical(subjects), due, strict)

    def forget_due(self, now: datetime | None = None) -> Receipt | None:
        """Carries the scheduled requests out that are due, as one request.

        Args:
            now: The time; None for that of the clock.

        Returns:
            The receipt; None if nothing is due.
        """
        return self._forgetting.forget_due(now or datetime.now(timezone.utc))

    def pending(self) -> list[tuple[str, int]]:
        """Returns the times (UTC, ISO 8601) of scheduled requests, and of how many subjects."""
        query = "SELECT due, COUNT(*) FROM pending GROUP BY due ORDER BY due"
        return self._ledger.connection.execute(query).fetchall()

    def receipts(self, after: int = 0) -> list[Receipt]:
        """Returns the receipts of all requests, in order.

        Args:
            after: Only those of requests after this one.
        """
        return [read_receipt(self._ledger, request) for request in range(after + 1, self.request_number + 1)]

    def has_given(self, receipt: Receipt) -> bool:
        """Says whether the store's history, unchanged, has the request that a receipt is of.

        Args:
            receipt: The receipt; files that were erased after it was given may be missing in it.
        """
        if not 1 <= receipt.request <= self.request_number or self.chain_digest(receipt.position) != receipt.chain:
            return False
        kept = read_receipt(self._ledger, receipt.request)
        later = {name: getattr(receipt, name) for name in ("position", "chain", "erased_files", "erased_bytes")}
        return receipt in (kept, replace(kept, **later)) and receipt.erased_files <= kept.erased_files

    def revoked(self) -> set[UnitId]:
        """Returns every unit that a request or damage has ever taken away; it may have been trained anew since."""
        bodies = [event.body for event in read_events(self._ledger)]
        with legible("The history of requests"):
            units = {unit for body in bodies for unit in (*body.get("revoked", ()), *body.get("units", ()))}
            return {UnitId.parse(unit) for unit in units}

    def chain_digest(self, position: int) -> str | None:
        """Returns the digest at a position of the chain of events, to compare with a receipt's.

        None beyond the chain's end, and if an event up to there is not what it was when it was written.

        Args:
            position: Counted from 1.
        """
        events = [event for event in read_events(self._ledger) if event.position <= position]
        if len(events) != position or not events or first_break(events) is not None:
            return None
        return events[-1].digest


def _canonical(subjects: Iterable[Any]) -> list[str]:
    # the letters of "user-17" are ids too, and so are the bytes of b"17": nobody means them
    if isinstance(subjects, (str, bytes, bytearray)) or not isinstance(subjects, Iterable):
        raise DataError(
            f"The subjects are {type(subjects).__name__}. Expected several ids, even for one person: "
            'forget(["user-17"]).'
        )
    return [canonical_subject(subject) for subject in subjects]
