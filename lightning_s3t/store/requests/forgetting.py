"""Forgetting: a deletion request, revoked in one transaction and then erased."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone

from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.receipts import RequestRecord
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.errors import RevokedError
from lightning_s3t.store.attempt import FinishedUnit
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.keys.authentication import Change
from lightning_s3t.store.ledgers.ledger import Ledger, Mark, Tombstone
from lightning_s3t.store.requests.execution import CarriedOut, RequestExecutor
from lightning_s3t.store.requests.lookup import Asked, Lookup
from lightning_s3t.store.requests.scheduling import Scheduling, time_text


@contextmanager
def _collector_paused() -> Iterator[None]:
    # the collector walks over a hundred thousand people again and again: a fifth of the time that forgetting them takes
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class Forgetting:
    """Carries requests to forget out: at once, when they are due, or with the fit that replaces the model.

    Args:
        store: The store's backend.
        manifest: The settings and the method of its units.
        lookup: Looks up the subjects of requests.
        executor: Carries requests out.
        scheduling: Records those that wait.
    """

    def __init__(
        self, store: Backend, manifest: Manifest, lookup: Lookup, executor: RequestExecutor, scheduling: Scheduling
    ) -> None:
        self._store = store
        self._ledger = store.ledger
        self._method = manifest.method
        self._lookup = lookup
        self._executor = executor
        self._scheduling = scheduling

    @_collector_paused()
    def forget(self, subjects: Sequence[str], strict: bool, request_id: str | None = None) -> RequestRecord | Ticket:
        """Carry out a request, or record it for the next fit, as `Store.forget` for canonical ids."""
        if self._method.waits:
            self._executor.check_nameless(request_id)
            now = datetime.now(timezone.utc)
            asked = self._scheduling.wait(subjects, now, strict)
            return Ticket(
                time_text(now), len(asked.cells), len(asked.forgotten), asked.count_unknown, self._method.name
            )
        return self._executor.carry_out_once(
            "forget", subjects, strict, request_id, lambda asked, number: burial(self._ledger, asked, number)
        )

    @_collector_paused()
    def forget_due(self, now: datetime) -> RequestRecord | None:
        """Carry out all due requests as one, as `Store.forget_due`."""
        if self._method.waits or not self.due(now):
            return None
        with self._ledger.transaction():
            new = self.due(now)
            if not new:  # another process was faster
                return None
            request = self._executor.note(self._forget(self._executor.next_number(), new))
        return self._executor.finish(request)

    def due(self, now: datetime) -> list[Tombstone]:
        """Return the subjects whose requests are due.

        Args:
            now: The time.
        """
        return self._ledger.due(time_text(now))

    def replace(
        self, due: Collection[Tombstone], unit: FinishedUnit | None, corrections: Collection[Mark] = ()
    ) -> RequestRecord:
        """Carry out requests that waited, and replace the revoked units with a new one: all or nothing.

        Corrections are one request, and deletions are another after it.

        Args:
            due: The subjects to forget; subjects who are already forgotten are left out.
            unit: The unit; None if none can be made.
            corrections: The marks of subjects whose data was corrected before the unit was made; only those of kind
                "awaiting".

        Returns:
            The receipt of the newest.

        Raises:
            RevokedError: The unit must not be kept, or all of its requests were cancelled. Nothing was changed.
            StoreError: A file could not be erased. The requests are still carried out.
        """
        with self._ledger.transaction():
            if unit is not None:
                unit.check()
            waiting = self._ledger.waiting(hash_ for hash_, _ in due)
            leaving = [one for one in due if one[0] in waiting]
            settled = self._still_waiting(corrections, leaving)
            if not leaving and not settled:
                raise RevokedError(
                    "The requests that waited for this fit were cancelled. The serving model keeps serving."
                )
            number, carried_out = self._executor.next_number(), list[CarriedOut]()
            if settled:
                asked = Asked({mark.hash: mark.cell for mark in settled}, set(), None, {})
                carried_out.append(self._executor.carry_out(number, "rectify", asked, _settlement(settled, number)))
                number += 1
            if leaving:
                carried_out.append(self._forget(number, leaving))
            added = unit.put(carried_out[-1].number) if unit is not None else None
            for one in carried_out:
                self._executor.note(one, added)
            if added is not None:  # its data was chosen as of these requests, which are in the history only now
                self._store.authenticator.seal([str(added)])
        return self._executor.finish(carried_out[-1].number)

    def _forget(self, number: int, due: Collection[Tombstone]) -> CarriedOut:
        asked = self._lookup.find_waiting(due)
        return self._executor.carry_out(number, "forget", asked, burial(self._ledger, asked, number))

    def _still_waiting(self, corrections: Collection[Mark], leaving: Iterable[Tombstone]) -> list[Mark]:
        there = set(self._ledger.marks("awaiting"))
        gone = {hash_ for hash_, _ in leaving}
        return sorted(mark for mark in corrections if mark in there and mark.hash not in gone)


def burial(ledger: Ledger, asked: Asked, number: int) -> Change:
    """Return the changes of forgetting: the subjects' restrictions and waiting corrections end.

    Args:
        ledger: The ledger.
        asked: The subjects.
        number: The number of the request.
    """
    new, restricted = asked.to_forget, asked.restricted
    buried = [(hash_, restricted[hash_].number if hash_ in restricted else number, cell) for hash_, cell in new]
    waiting = ledger.marks_of([hash_ for hash_, _ in new], "awaiting")
    return Change(tuple(buried), (), tuple(sorted([*restricted.values(), *waiting])))


def _settlement(settled: Collection[Mark], number: int) -> Change:
    """Return the changes of a correction that waited for a fit."""
    corrected = {mark.hash: Mark("rectified", mark.hash, number, mark.cell) for mark in settled}
    return Change((), tuple(sorted(corrected.values())), tuple(sorted(settled)))
