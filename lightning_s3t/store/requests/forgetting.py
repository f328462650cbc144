"""Forgetting: a deletion request, revoked in one transaction and then erased."""

from __future__ import annotations

import functools
import gc
import platform
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from lightning_s3t.core.events import Cancellation, MarkRow, Request, RequestKind, Schedule
from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.receipts import RequestRecord
from lightning_s3t.core.subjects import shorten
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.core.units import Cell, UnitId, reaches
from lightning_s3t.errors import ConfigurationError, RevokedError, RolledBackError, StoreError, UnknownSubjectError
from lightning_s3t.plan import Partition, survivors
from lightning_s3t.store.attempt import FinishedUnit
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import read_record, record
from lightning_s3t.store.keys.authentication import Change
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone, ledger_errors
from lightning_s3t.store.registry import is_registering
from lightning_s3t.store.requests.effects import Effect, carry_out
from lightning_s3t.store.requests.erasure import erase_queued
from lightning_s3t.store.requests.journal import write_journal
from lightning_s3t.store.requests.leases import ReplicaWait
from lightning_s3t.store.requests.scheduled import ScheduledRequest, find_scheduled, list_scheduled
from lightning_s3t.store.units import parse_unit

_LONGEST_REASON = 500


@dataclass(frozen=True)
class Asked:
    """The subjects of a request.

    Attributes:
        cells: By keyed hash, the cell of each subject's data.
        forgotten: Those who are forgotten.
        unknown: Those whom the store has never seen; None where it keeps no registry.
        restricted: By keyed hash, the mark of each who is restricted.
    """

    cells: dict[bytes, Cell]
    forgotten: set[bytes]
    unknown: set[bytes] | None
    restricted: dict[bytes, Mark]

    @property
    def count_unknown(self) -> int | None:
        """Number of subjects that the store has never seen; None without a registry."""
        return len(self.unknown) if self.unknown is not None else None


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
    """Carries the requests of a store out, now or when they are due.

    Args:
        store: The store's backend.
        keyring: Its keys.
        partition: The partition of the subjects.
        manifest: The settings and the method of its units.
    """

    def __init__(self, store: Backend, keyring: Keyring, partition: Partition, manifest: Manifest) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._partition = partition
        self._manifest = manifest
        self.waits = manifest.method.response == "replace"
        self._registers = is_registering(store.ledger)  # fixed when a store is made
        self._behind: dict[int, dict[str, float]] = {}  # by request, the replicas that were noted at its COMMIT

    @_collector_paused()
    def forget(self, subjects: Sequence[str], strict: bool, request_id: str | None = None) -> RequestRecord | Ticket:
        """Carry out a request; if the method answers with a new model, record it for the next fit.

        Args:
            subjects: Canonical ids.
            strict: Refuse unknown subjects.
            request_id: The caller's name for the request; None without one.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: A file could not be erased. The request is still carried out.
        """
        name = self.name("forget", subjects, request_id)
        if self.waits:
            self.check_nameless(name)
            now = datetime.now(timezone.utc)
            return Ticket(time_text(now), *self._schedule(subjects, now, strict), self._manifest.method.name)
        with self._ledger.transaction():
            request = self.find(name)
            if request is None:
                asked = self.look_up(subjects, strict)
                request = self._forget(asked, name)
        return self.finish(request)

    def schedule(
        self,
        subjects: Sequence[str],
        due: datetime,
        strict: bool,
        request_id: str | None = None,
        received: date | None = None,
    ) -> int:
        """Record a request to be carried out later.

        Args:
            subjects: Canonical ids. Of two times for a subject, the earlier counts.
            due: When.
            strict: Refuse unknown subjects.
            request_id: The caller's name for the request; None without one.
            received: The day on which the letter came; None for today.

        Returns:
            Number of recorded subjects; subjects who are already forgotten are not recorded.

        Raises:
            ConfigurationError: The time has no time zone, or is outside the calendar in UTC.
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
        """
        if due.tzinfo is None:
            raise ConfigurationError(
                f"The time {due.isoformat()} has no time zone. Expected a time like 2027-01-31T12:00Z."
            )
        name = self.name("forget", subjects, request_id)
        asked, already, _ = self._schedule(subjects, due, strict, name, received)
        return asked - already

    def _schedule(
        self,
        subjects: Iterable[str],
        due: datetime,
        strict: bool,
        name: Name | None = None,
        received: date | None = None,
    ) -> tuple[int, int, int | None]:
        time = time_text(due)
        with self._ledger.transaction():
            if name is not None:
                found = find_scheduled(self._store, self._keyring, name.request_id)
                if found is not None:
                    _check_same(found, name)
                    return found.subjects, 0, None
                self._check_no_request(name)
            asked = self.look_up(subjects, strict)
            rows = [(hash_, time, cell) for hash_, cell in sorted(asked.cells.items()) if hash_ not in asked.forgotten]
            self._ledger.schedule(rows)
            if rows or name is not None:
                pending = tuple((hash_.hex(), time, cell) for hash_, time, cell in rows)
                request_id, digest = (name.request_id, name.asked) if name is not None else (None, None)
                day = received.isoformat() if received is not None else None
                body = Schedule(self._keyring.layers, pending, request_id, digest, day)
                record(self._store, "schedule", None, asdict(body))
        write_journal(self._store)
        return len(asked.cells), len(asked.forgotten), asked.count_unknown

    def cancel(self, subjects: Iterable[str]) -> int:
        """Cancel the scheduled requests of subjects.

        Args:
            subjects: Canonical ids.

        Returns:
            Number of cancelled subjects.

        Raises:
            UnknownSubjectError: Nothing is scheduled for one of them. Nothing was changed.
        """
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

    def scheduled_request(self, request_id: str) -> ScheduledRequest | None:
        """Return a scheduled request by its caller's name; None if it does not exist.

        Args:
            request_id: The name.
        """
        with self._ledger.at_one_time():
            return find_scheduled(self._store, self._keyring, request_id)

    def scheduled_requests(self) -> list[ScheduledRequest]:
        """Return all scheduled and refused requests, in order."""
        with self._ledger.at_one_time():
            return list_scheduled(self._store, self._keyring)

    def cancel_request(self, request_id: str) -> int:
        """Cancel a scheduled request; subjects in another scheduled request still wait for that one.

        Args:
            request_id: The caller's name for it. To cancel it twice changes nothing.

        Returns:
            Number of subjects who no longer wait.

        Raises:
            UnknownSubjectError: The request does not exist, or was carried out. Nothing was changed.
        """
        with self._ledger.transaction():
            found = find_scheduled(self._store, self._keyring, request_id)
            if found is not None and found.is_ended:
                return 0
            if found is None or found.state == "carried out":
                what = "is not a scheduled one" if found is None else "was carried out, which cannot be undone"
                raise UnknownSubjectError(f"The request {request_id!r:.60} {what}. Nothing was cancelled.")
            self._end(request_id, found.alone)
        write_journal(self._store)
        return len(found.alone)

    def refuse_request(self, request_id: str, reason: str) -> int:
        """Record that a request is refused; a scheduled one is then not carried out.

        Args:
            request_id: The caller's name for it. Refusing it twice for the same reason changes nothing.
            reason: The reason.

        Returns:
            Number of subjects who no longer wait.

        Raises:
            ConfigurationError: It was carried out or cancelled, or was refused for another reason; or the name or the
                reason is invalid. Nothing was changed.
        """
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
            alone = found.alone if found is not None else frozenset()
            self._end(request_id, alone, reason)
        write_journal(self._store)
        return len(alone)

    def _end(self, request_id: str, alone: Collection[bytes], reason: str = "") -> None:
        self._ledger.unschedule(alone)
        pending = tuple(hash_.hex() for hash_ in sorted(alone))
        body = asdict(Cancellation(self._keyring.layers, pending, request_id, reason))
        record(self._store, "cancellation", None, body)

    @_collector_paused()
    def forget_due(self, now: datetime) -> RequestRecord | None:
        """Carry out all due requests as one.

        Args:
            now: The time.

        Returns:
            The receipt; None if nothing is due.

        Raises:
            StoreError: A file could not be erased. The request is still carried out.
        """
        if self.waits or not self.due(now):
            return None
        with self._ledger.transaction():
            new = self.due(now)
            if not new:  # another process was faster
                return None
            request = self._forget(self._scheduled(new))
        return self.finish(request)

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
            number, carried_out = self._ledger.watermark() + 1, list[CarriedOut]()
            if settled:
                asked = Asked({mark.hash: mark.cell for mark in settled}, set(), None, {})
                carried_out.append(self.carry_out("rectify", asked, _settling(settled, number), number=number))
                number += 1
            if leaving:
                asked = self._scheduled(leaving)
                carried_out.append(self.carry_out("forget", asked, self.burying(asked, number), number=number))
            added = unit.put(carried_out[-1].number) if unit is not None else None
            for one in carried_out:
                self.note(one, added)
            if added is not None:  # its data was chosen as of these requests, which are in the history only now
                self._store.authenticator.seal([str(added)])
        return self.finish(carried_out[-1].number)

    def _forget(self, asked: Asked, name: Name | None = None) -> int:
        number = self._ledger.watermark() + 1
        return self.note(self.carry_out("forget", asked, self.burying(asked, number), name, number))

    def burying(self, asked: Asked, number: int) -> Change:
        """Return the changes of forgetting: the subjects' restrictions and waiting corrections end.

        Args:
            asked: The subjects.
            number: The number of the request.
        """
        new = [(hash_, cell) for hash_, cell in sorted(asked.cells.items()) if hash_ not in asked.forgotten]
        restricted = asked.restricted
        buried = [(hash_, restricted[hash_].number if hash_ in restricted else number, cell) for hash_, cell in new]
        waiting = self._ledger.marks_of([hash_ for hash_, _ in new], "awaiting")
        return Change(tuple(buried), (), tuple(sorted([*restricted.values(), *waiting])))

    def _scheduled(self, new: list[Tombstone]) -> Asked:
        unknown: set[bytes] | None = None
        if self._registers:
            unknown = {hash_ for hash_, _ in new} - self._ledger.bands(hash_ for hash_, _ in new).keys()
        return Asked(dict(new), set(), unknown, self._restricted(hash_ for hash_, _ in new))

    def _still_waiting(self, corrections: Collection[Mark], leaving: Iterable[Tombstone]) -> list[Mark]:
        there = set(self._ledger.marks("awaiting"))
        gone = {hash_ for hash_, _ in leaving}
        return sorted(mark for mark in corrections if mark in there and mark.hash not in gone)

    def _restricted(self, hashes: Iterable[bytes]) -> dict[bytes, Mark]:
        return {mark.hash: mark for mark in self._ledger.marks_of(hashes, "restricted")}

    def look_up(self, subjects: Iterable[str], strict: bool) -> Asked:
        """Look up the subjects of a request; within a transaction.

        Args:
            subjects: Canonical ids.
            strict: Refuse unknown subjects.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set, or is known in another Unicode form.
        """
        asked = self._keyring.hashes(subjects)
        ledger = self._ledger
        already, bands, generations = ledger.forgotten(asked), ledger.bands(asked), ledger.generations(asked)
        restricted = {mark.hash: mark for mark in ledger.marks_of(asked, "restricted")}
        unknown: set[bytes] | None = None
        if self._registers:
            # who was restricted before any fit is known by that alone
            unknown = asked.keys() - bands.keys() - already - restricted.keys()
            strangers = [asked[hash_] for hash_ in asked if hash_ in unknown]
            if strangers:
                self._check_spelling(strangers)
            if strangers and strict:
                raise UnknownSubjectError(_unknown_message(strangers, str(self._store.folder)))
        places = self._partition.places(
            asked.values(), [bands.get(hash_, 0) for hash_ in asked], [generations.get(hash_, 0) for hash_ in asked]
        )
        cells = {hash_: place.cell for hash_, place in zip(asked, list(places), strict=True)}
        cells |= {hash_: mark.cell for hash_, mark in restricted.items()}
        return Asked(cells, already, unknown, restricted)

    def _check_spelling(self, strangers: Iterable[str]) -> None:
        """Raise an error for an unknown id that the store knows in another Unicode form: both look the same."""
        forms = {form: subject for subject in strangers for form in _other_forms(subject)}
        hashes = self._keyring.hashes(forms)
        for hash_ in (*self._ledger.bands(hashes), *self._ledger.forgotten(hashes), *self._restricted(hashes)):
            form = hashes[hash_]
            raise UnknownSubjectError(
                f"The store {self._store.folder} has never seen {shorten(ascii(forms[form]))}, but it knows "
                f"{shorten(ascii(form))}, which is the same text in another Unicode form. Expected the spelling of "
                "the training data. Nothing was changed."
            )

    def name(self, kind: RequestKind, subjects: Sequence[str], request_id: str | None) -> Name | None:
        """Return the caller's name for a request; None without a name.

        Args:
            kind: The kind of request.
            subjects: Canonical ids.
            request_id: The name.

        Raises:
            ConfigurationError: It cannot be one.
        """
        return Name(kind, request_id, self._keyring.digest_of(subjects)) if request_id is not None else None

    def check_nameless(self, name: Name | None) -> None:
        """Refuse a name for a request that waits for a fit.

        Args:
            name: The name, or None.

        Raises:
            ConfigurationError: There is one.
        """
        if name is not None:
            raise ConfigurationError(
                f"With the method {self._manifest.method.name!r} requests wait for the next fit, which carries all of "
                "them out as one, so they have no names. Leave request_id out: a repeated request counts once."
            )

    def find(self, name: Name | None) -> int | None:
        """Return the earlier request with a caller's name; within a transaction.

        Args:
            name: The name, or None.

        Raises:
            ConfigurationError: It was given to another request.
        """
        if name is None:
            return None
        scheduled = find_scheduled(self._store, self._keyring, name.request_id)
        if scheduled is not None:
            raise ConfigurationError(
                f"The name {name.request_id!r} was given to a request that is {scheduled.state}. Expected a new name "
                "for each request. Nothing was changed."
            )
        return self._find(name)

    def _check_no_request(self, name: Name) -> None:
        number = self._find(name)
        if number is not None:
            raise ConfigurationError(
                f"The name {name.request_id!r} was given to request {number}, which was carried out at once. Expected "
                "a new name for each request. Nothing was changed."
            )

    def _find(self, name: Name) -> int | None:
        found = self._ledger.request_named(name.request_id)
        if found is None:
            return None
        self._behind.pop(found, None)  # a transaction of ours with this number may have been undone
        with ledger_errors(f"Request {found}"):
            earlier = next(self._ledger.events(request=found)).read(Request)
        if (earlier.request_id, earlier.asked, earlier.kind) != (name.request_id, name.asked, name.kind):
            what = "for other subjects" if earlier.kind == name.kind else f"one to {earlier.kind}"
            raise ConfigurationError(
                f"The name {name.request_id!r} was given to request {found}, which was {what}. Expected a new name "
                "for each request. Nothing was changed."
            )
        return found

    def carry_out(
        self, kind: RequestKind, asked: Asked, change: Change, name: Name | None = None, number: int | None = None
    ) -> CarriedOut:
        """Carry out a request, except for the event; within a transaction.

        Args:
            kind: The kind of request.
            asked: The subjects of the request.
            change: The change to the lists of people.
            name: The caller's name for it.
            number: The number of the request; None for the next.
        """
        number = number if number is not None else self._ledger.watermark() + 1
        told = self._ledger.forgotten_after(number - 1)  # faster than counting
        before = told if told is not None else self._ledger.count_forgotten()
        effect = carry_out(self._store, kind, number, change)
        return CarriedOut(number, kind, asked, change, name, effect, before + len(change.buried))

    def note(self, carried_out: CarriedOut, added: UnitId | None = None) -> int:
        """Add a request that was carried out to the history; within the transaction.

        Args:
            carried_out: The request as carried out.
            added: A unit that was trained without the data of the request and replaced one with it.

        Returns:
            The number of the request.
        """
        request = carried_out.number
        asked, change, effect, name = carried_out.asked, carried_out.change, carried_out.effect, carried_out.name
        body = Request(
            subjects=len(asked.cells),
            already_forgotten=len(asked.forgotten),
            unknown=asked.count_unknown,
            revoked=effect.revoked,
            serving=self._serving(effect, added),
            method=self._manifest.method.name,
            guarantee=self._manifest.method.guarantee,
            isolation=self._manifest.isolation,
            versions=_versions(),
            layers=self._keyring.layers,
            forgotten=carried_out.forgotten,
            tombstones=tuple((hash_.hex(), cell) for hash_, _, cell in change.buried),
            request_id=name.request_id if name is not None else None,
            asked=name.asked if name is not None else None,
            exports=effect.exports,
            subtracted_rows=effect.subtracted_rows,
            kind=carried_out.kind,
            already_restricted=len(asked.restricted),
            set_aside=effect.set_aside,
            returned=effect.returned,
            cells=carried_out.corrected,
            marks=_rows(change.marked),
            unmarked=_rows(change.unmarked),
        )
        certificate = self._manifest.method.certificate
        known = {"certificate": asdict(certificate)} if certificate is not None else {}
        body_of = {name: value for name, value in vars(body).items() if name != "certificate"}
        record(self._store, "request", request, body_of | known, carried_out.forgotten, change)
        self._behind[request] = self._ledger.replicas_behind(request)
        return request

    def _serving(self, effect: Effect, added: UnitId | None) -> dict[str, str | None]:
        """Return the units that now serve in a request's shards, after checking that the request does not reach them.

        Args:
            effect: The effect of the request.
            added: A unit that was trained without the data of the request and replaced one with it.
        """
        serving: dict[str, str | None] = {}
        if not self._manifest.method.has_units:
            return serving  # there are no units
        scores = [(shard, self._ledger.scores(f"{shard}/")) for shard in effect.shards]
        with ledger_errors("The name of a unit"):
            alive = {shard: {parse_unit(name): score for name, score in found.items()} for shard, found in scores}
        for shard, left in alive.items():
            missed = [str(unit) for unit in left if unit != added and reaches(unit.cells, effect.reached)]
            if missed:
                raise StoreError(
                    f"The ledger of the store {self._store.folder} is damaged: its index does not record that the "
                    f"request reaches {missed[0]}. Nothing was changed. Restore the ledger from a backup (missing "
                    "requests are carried out again from the journal), or train again into a new folder."
                )
            best = survivors(left, {unit: score for unit, score in left.items() if score is not None})
            serving[str(shard)] = str(best[shard]) if best else None
        return serving

    def finish(self, request: int) -> RequestRecord:
        """Write a request to the journal, erase what it revoked, and wait for replicas; after its transaction.

        Args:
            request: The number of the request.

        Raises:
            StoreError: A file could not be erased. The request is still carried out.
        """
        wait = ReplicaWait(self._ledger, request, self._behind.pop(request, None))
        try:
            self._erase(request)
        except RolledBackError:  # nothing was carried out
            raise
        except StoreError:
            wait.wait()
            raise
        wait.wait()
        return read_record(self._store, request)

    def _erase(self, request: int) -> None:
        try:
            end = None
            try:
                end = write_journal(self._store)
            finally:  # the disk may be full, which makes the erasure even more important
                erase_queued(self._store)
            write_journal(self._store, end)
        except RolledBackError:  # it may be the lost connection
            raise
        except StoreError as error:
            raise StoreError(
                f"Request {request} is carried out, and nothing that it reached serves, but a later step failed: "
                f"{error} The step is repeated when the store is next opened."
            ) from error


@dataclass(frozen=True)
class Name:
    """The caller's name for a request, with its kind and a digest of its subjects."""

    kind: RequestKind
    request_id: str
    asked: str

    def __post_init__(self) -> None:
        check_name(self.request_id)


@dataclass(frozen=True)
class CarriedOut:
    """A request that was carried out, and is not in the history yet."""

    number: int
    kind: RequestKind
    asked: Asked
    change: Change
    name: Name | None
    effect: Effect
    forgotten: int  # how many are, after it

    @property
    def corrected(self) -> tuple[Cell, ...]:
        """The cells of subjects whose data was corrected."""
        asked = self.asked
        left_out = asked.forgotten | (asked.unknown or set())
        cells = {cell for hash_, cell in asked.cells.items() if hash_ not in left_out}
        return tuple(sorted(cells)) if self.kind == "rectify" else ()


def check_name(request_id: str) -> None:
    """Check the name of a request.

    Args:
        request_id: The name.

    Raises:
        ConfigurationError: It is invalid.
    """
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 200:
        raise ConfigurationError(
            f"The name of the request is {request_id!r:.60}. Expected a text of 1 to 200 characters."
        )
    if not request_id.isprintable():
        raise ConfigurationError(f"The name of the request is {request_id!r}. Expected printable characters.")


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


def _settling(settled: Collection[Mark], number: int) -> Change:
    """Return the changes of a correction that waited for a fit."""
    corrected = {mark.hash: Mark("rectified", mark.hash, number, mark.cell) for mark in settled}
    return Change((), tuple(sorted(corrected.values())), tuple(sorted(settled)))


def _rows(marks: Iterable[Mark]) -> tuple[MarkRow, ...]:
    return tuple((mark.kind, mark.hash.hex(), mark.number, mark.cell) for mark in marks)


def _other_forms(subject: str) -> set[str]:
    if subject.isascii():
        return set()
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return {unicodedata.normalize(form, subject) for form in forms} - {subject}


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


def list_shown(subjects: list[str]) -> str:
    """Return the first of several ids, and the number of further ones, for a message.

    Args:
        subjects: Ids.
    """
    return ", ".join(shorten(repr(subject)) for subject in subjects[:5]) + (
        f" and {len(subjects) - 5} more" if len(subjects) > 5 else ""
    )


def _unknown_message(unknown: list[str], store: str) -> str:
    return (
        f"The store {store} has never seen {list_shown(unknown)}. Expected ids of its training data. Nothing was "
        "changed. Check the spelling, or pass strict=False (--allow-unknown on the command line): unknown subjects are "
        "then kept out of every later fit."
    )


@functools.cache  # reading the packages' metadata takes longer than the rest of a request that revokes nothing
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lightning-s3t", "torch", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
