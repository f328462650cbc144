"""Scheduling: deletion requests for later, cancelled or refused before they are carried out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date, datetime, timezone

from lightning_s3t.core.events import Cancellation, Schedule
from lightning_s3t.errors import ConfigurationError, UnknownSubjectError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import record
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.requests.journal import write_journal
from lightning_s3t.store.requests.lookup import Asked, Lookup, list_shown
from lightning_s3t.store.requests.names import Name, check_name, find_carried_out
from lightning_s3t.store.requests.scheduled import ScheduledRequest, find_scheduled

_LONGEST_REASON = 500


class Scheduling:
    """Schedules requests to forget, and cancels and refuses them.

    Args:
        store: The store's backend.
        keyring: Its keys.
        lookup: Looks up the subjects of requests.
    """

    def __init__(self, store: Backend, keyring: Keyring, lookup: Lookup) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._lookup = lookup

    def schedule(
        self,
        subjects: Sequence[str],
        due: datetime,
        strict: bool,
        request_id: str | None = None,
        received: date | None = None,
    ) -> int:
        """Record a request to be carried out later, as `Store.schedule` for canonical ids."""
        if due.tzinfo is None:
            raise ConfigurationError(
                f"The time {due.isoformat()} has no time zone. Expected a time like 2027-01-31T12:00Z."
            )
        name, time = Name.of("forget", subjects, request_id, self._keyring), time_text(due)
        with self._ledger.transaction():
            if name is not None:
                found = find_scheduled(self._store, self._keyring, name.request_id)
                if found is not None:
                    _check_same(found, name)
                    return found.subjects
                self._check_no_request(name)
            asked = self._add(subjects, time, strict, name, received)
        write_journal(self._store)
        return len(asked.to_forget)

    def wait(self, subjects: Sequence[str], since: datetime, strict: bool) -> Asked:
        """Record a request that waits for the next fit.

        Args:
            subjects: Canonical ids.
            since: The current time.
            strict: Refuse unknown subjects.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
        """
        with self._ledger.transaction():
            asked = self._add(subjects, time_text(since), strict)
        write_journal(self._store)
        return asked

    def _add(
        self, subjects: Sequence[str], time: str, strict: bool, name: Name | None = None, received: date | None = None
    ) -> Asked:
        asked = self._lookup.find(subjects, strict)
        rows = [(hash_, time, cell) for hash_, cell in asked.to_forget]
        self._ledger.schedule(rows)
        if rows or name is not None:
            pending = tuple((hash_.hex(), time, cell) for hash_, time, cell in rows)
            request_id, digest = (name.request_id, name.asked) if name is not None else (None, None)
            day = received.isoformat() if received is not None else None
            body = Schedule(self._keyring.layers, pending, request_id, digest, day)
            record(self._store, "schedule", None, asdict(body))
        return asked

    def cancel(self, subjects: Iterable[str]) -> int:
        """Cancel the scheduled requests of subjects, as `Store.cancel` for canonical ids."""
        with self._ledger.transaction():
            asked = self._keyring.hashes(subjects)
            missing = [asked[hash_] for hash_ in asked.keys() - self._ledger.waiting(asked)]
            if missing:
                raise UnknownSubjectError(
                    f"Nothing is scheduled for {list_shown(sorted(missing))} in the store {self._store.folder}. "
                    "Expected ids of scheduled requests that are not carried out yet. Nothing was cancelled."
                )
            self._ledger.unschedule(asked)
            pending = tuple(hash_.hex() for hash_ in sorted(asked))
            record(self._store, "cancellation", None, asdict(Cancellation(self._keyring.layers, pending)))
        write_journal(self._store)
        return len(asked)

    def cancel_request(self, request_id: str) -> int:
        """Cancel a scheduled request by its name, as `Store.cancel_request`."""
        with self._ledger.transaction():
            found = find_scheduled(self._store, self._keyring, request_id)
            if found is not None and found.is_ended:
                return 0
            if found is None or found.state == "carried out":
                what = "is not a scheduled one" if found is None else "was carried out, which cannot be undone"
                raise UnknownSubjectError(f"The request {request_id!r:.60} {what}. Nothing was cancelled.")
            count = self._end(request_id, found)
        write_journal(self._store)
        return count

    def refuse_request(self, request_id: str, reason: str) -> int:
        """Record that a request is refused, as `Store.refuse_request`."""
        check_name(request_id)
        if not reason.strip() or len(reason) > _LONGEST_REASON or not reason.isprintable():
            raise ConfigurationError(
                f"The reason is {reason!r:.60}. Expected a text of 1 to {_LONGEST_REASON} characters on one line."
            )
        with self._ledger.transaction():
            found = find_scheduled(self._store, self._keyring, request_id)
            if found is not None and (found.state, found.reason) == ("refused", reason):
                return 0
            carried_out = self._ledger.request_named(request_id) is not None
            state = "carried out" if carried_out else found.state if found is not None else "scheduled"
            if state != "scheduled":
                raise ConfigurationError(
                    f"The request {request_id!r} is {state}. Expected a request that is still open. Nothing was "
                    "changed."
                )
            count = self._end(request_id, found, reason)
        write_journal(self._store)
        return count

    def _end(self, request_id: str, found: ScheduledRequest | None, reason: str = "") -> int:
        """End a request; its subjects who wait for others wait until these are due. Return how many no longer wait."""
        layers, alone = self._keyring.layers, found.alone if found is not None else frozenset()
        also = dict(found.also) if found is not None else {}
        rows = self._ledger.scheduled() if also else ()
        later = [(hash_, also[hash_], cell) for hash_, due, cell in rows if hash_ in also and due < also[hash_]]
        gone = sorted({*alone, *(hash_ for hash_, _, _ in later)})
        self._ledger.unschedule(gone)
        body = Cancellation(layers, tuple(hash_.hex() for hash_ in gone), request_id, reason)
        record(self._store, "cancellation", None, asdict(body))
        if later:
            self._ledger.schedule(later)
            pending = tuple((hash_.hex(), due, cell) for hash_, due, cell in later)
            record(self._store, "schedule", None, asdict(Schedule(layers, pending)))
        return len(alone)

    def _check_no_request(self, name: Name) -> None:
        number = find_carried_out(self._ledger, name)
        if number is not None:
            raise ConfigurationError(
                f"The name {name.request_id!r} was given to request {number}, which was carried out at once. Expected "
                "a new name for each request. Nothing was changed."
            )


def _check_same(found: ScheduledRequest, name: Name) -> None:
    if found.is_ended:
        raise ConfigurationError(
            f"The request {name.request_id!r} was {found.state}. Expected a new name to ask again. Nothing was changed."
        )
    if found.asked != name.asked:
        raise ConfigurationError(
            f"The name {name.request_id!r} was given to a scheduled request for other subjects. Expected a new name "
            "for each request. Nothing was changed."
        )


def time_text(time: datetime) -> str:
    """Return a time in the ledger's format (UTC, ISO 8601).

    Args:
        time: With a time zone.

    Raises:
        ConfigurationError: The time has no date in UTC.
    """
    try:
        return time.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    except OverflowError:
        raise ConfigurationError(
            f"The time {time.isoformat()} is outside the calendar in UTC. Expected a time between the years 1 and 9999."
        ) from None
