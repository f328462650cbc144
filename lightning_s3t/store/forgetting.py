"""Forgetting: a deletion request, revoked in one transaction and then erased."""

from __future__ import annotations

import functools
import platform
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from lightning_s3t.core.events import Cancellation, Request, Schedule
from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.receipts import RequestRecord
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.core.units import Place, UnitId, reaches
from lightning_s3t.errors import ConfigurationError, StoreError, UnknownSubjectError
from lightning_s3t.plan import Partition, survivors
from lightning_s3t.store.attempt import FinishedUnit
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.erasure import erase_queued, revoke
from lightning_s3t.store.history import read_record, record
from lightning_s3t.store.journal import write_journal
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Tombstone, ledger_errors
from lightning_s3t.store.registry import is_registering
from lightning_s3t.store.units import parse_unit


class Forgetting:
    """Carries the requests of a store out, now or when they are due.

    Args:
        store: Where the store lies.
        keyring: Its keys.
        partition: Where subjects belong.
        manifest: What its units are trained with, and by which method.
    """

    def __init__(self, store: Backend, keyring: Keyring, partition: Partition, manifest: Manifest) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._partition = partition
        self._manifest = manifest
        self._waits = manifest.method.response == "replace"

    def forget(self, subjects: Sequence[str], strict: bool, request_id: str | None = None) -> RequestRecord | Ticket:
        """Carries a request out; where the method answers with another model, notes it for the next fit.

        Args:
            subjects: Canonical ids.
            strict: Refuse unknown subjects.
            request_id: The caller's name for the request; None without one.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            ConfigurationError: The name was given to another request, or cannot be one.
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        name = _Name(request_id, self._keyring.digest_of(subjects)) if request_id is not None else None
        if self._waits:
            if name is not None:
                raise ConfigurationError(
                    f"With the method {self._manifest.method.name!r} requests wait for the next fit, which carries all "
                    "of them out as one: they have no names. Leave request_id out: a request that is repeated is still "
                    "one."
                )
            now = datetime.now(timezone.utc)
            return Ticket(_text(now), *self._schedule(subjects, now, strict), self._manifest.method.name)
        with self._ledger.transaction():
            request = self._find(name) if name is not None else None
            if request is None:
                cells, already, unknown = self._look_up(subjects, strict)
                new = [(hash_, cell) for hash_, cell in cells.items() if hash_ not in already]
                request = self._carry_out(new, len(cells), len(already), unknown, name=name)
        return self._finish(request)

    def schedule(self, subjects: Iterable[str], due: datetime, strict: bool) -> int:
        """Notes a request that is to be carried out later.

        Args:
            subjects: Canonical ids. Of two times for a subject, the earlier counts.
            due: When.
            strict: Refuse unknown subjects.

        Returns:
            How many subjects were noted; those who are forgotten already are not.

        Raises:
            ConfigurationError: The time has no time zone, or is at an end of the calendar.
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
        """
        if due.tzinfo is None:
            raise ConfigurationError(f"The time {due.isoformat()} has no time zone. Expected one: 2027-01-31T12:00Z.")
        asked, already, _ = self._schedule(subjects, due, strict)
        return asked - already

    def _schedule(self, subjects: Iterable[str], due: datetime, strict: bool) -> tuple[int, int, int | None]:
        time = _text(due)
        with self._ledger.transaction():
            cells, already, unknown = self._look_up(subjects, strict)
            rows = [(hash_, time, cell) for hash_, cell in sorted(cells.items()) if hash_ not in already]
            self._ledger.schedule(rows)
            if rows:
                pending = tuple((hash_.hex(), time, cell) for hash_, time, cell in rows)
                record(self._store, "schedule", None, asdict(Schedule(self._keyring.layers, pending)))
        write_journal(self._ledger, self._store.folder)
        return len(cells), len(already), unknown

    def cancel(self, subjects: Iterable[str]) -> int:
        """Takes subjects from those who are to be forgotten later.

        Args:
            subjects: Canonical ids.

        Returns:
            How many there were.

        Raises:
            UnknownSubjectError: One of them is not among those; nothing has changed then.
        """
        with self._ledger.transaction():
            asked = self._keyring.hashes(subjects)
            missing = [asked[hash_] for hash_ in asked.keys() - self._ledger.waiting(asked)]
            if missing:
                raise UnknownSubjectError(
                    f"Nothing is scheduled for {_shown(sorted(missing))} in the store {self._store.folder}. Expected "
                    "ids of scheduled requests that are not carried out yet; nothing was cancelled."
                )
            self._ledger.unschedule(asked)
            pending = tuple(hash_.hex() for hash_ in sorted(asked))
            record(self._store, "cancellation", None, asdict(Cancellation(self._keyring.layers, pending)))
        write_journal(self._ledger, self._store.folder)
        return len(asked)

    def forget_due(self, now: datetime) -> RequestRecord | None:
        """Carries out what is due, as one request.

        Args:
            now: The time.

        Returns:
            The receipt; None if nothing is due.

        Raises:
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        if self._waits or not self.due(now):
            return None
        with self._ledger.transaction():
            new = self.due(now)
            if not new:  # another process was faster
                return None
            request = self._carry_out_scheduled(new)
        return self._finish(request)

    def due(self, now: datetime) -> list[Tombstone]:
        """Returns who is to be forgotten by now.

        Args:
            now: The time.
        """
        return self._ledger.due(_text(now))

    def replace(self, due: Collection[Tombstone], unit: FinishedUnit | None) -> RequestRecord:
        """Carries scheduled requests out as one, and puts a unit in the place of what they revoke: both or neither.

        Args:
            due: Who is forgotten; those who are forgotten already are left out.
            unit: The unit; None if none can be made.

        Raises:
            RevokedError: The unit must not be kept; nothing has changed.
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        with self._ledger.transaction():
            if unit is not None:
                unit.check()
            waiting = self._ledger.waiting(hash_ for hash_, _ in due)
            request = self._carry_out_scheduled([one for one in due if one[0] in waiting], unit)
        return self._finish(request)

    def _carry_out_scheduled(self, new: list[Tombstone], unit: FinishedUnit | None = None) -> int:
        unknown: int | None = None
        if is_registering(self._ledger):
            unknown = len(new) - len(self._ledger.bands(hash_ for hash_, _ in new))
        return self._carry_out(new, len(new), 0, unknown, unit)

    def _look_up(self, subjects: Iterable[str], strict: bool) -> tuple[dict[bytes, str], set[bytes], int | None]:
        asked = self._keyring.hashes(subjects)
        already = self._ledger.forgotten(asked)
        bands = self._ledger.bands(asked)
        unknown: int | None = None
        if is_registering(self._ledger):
            strangers = [subject for hash_, subject in asked.items() if hash_ not in bands and hash_ not in already]
            self._check_spelling(strangers)
            if strangers and strict:
                raise UnknownSubjectError(_unknown_message(strangers, str(self._store.folder)))
            unknown = len(strangers)
        generations = self._ledger.generations(asked)
        places = self._partition.places(
            asked.values(), [bands.get(hash_, 0) for hash_ in asked], [generations.get(hash_, 0) for hash_ in asked]
        )
        return {hash_: place.cell for hash_, place in zip(asked, places, strict=True)}, already, unknown

    def _check_spelling(self, strangers: Iterable[str]) -> None:
        """Refuse a stranger whom the store knows in another Unicode form: both look the same, and only one is there."""
        forms = {form: subject for subject in strangers for form in _other_forms(subject)}
        hashes = self._keyring.hashes(forms)
        for hash_ in (*self._ledger.bands(hashes), *self._ledger.forgotten(hashes)):
            form = hashes[hash_]
            raise UnknownSubjectError(
                f"The store {self._store.folder} has never seen {forms[form]!a}, but it knows {form!a}, which is the "
                "same text in another Unicode form. Expected the spelling of the training data; nothing was forgotten."
            )

    def _find(self, name: _Name) -> int | None:
        """Return the request that a caller has given a name before; refuse the name for another."""
        found = self._ledger.request_named(name.request_id)
        if found is None:
            return None
        with ledger_errors(f"Request {found}"):
            earlier = next(self._ledger.events(request=found)).read(Request)
        if (earlier.request_id, earlier.asked) != (name.request_id, name.asked):
            raise ConfigurationError(
                f"The name {name.request_id!r} was given to request {found}, which was for other subjects. Expected "
                "a name of its own for each request; nothing was forgotten."
            )
        return found

    def _carry_out(
        self,
        new: list[Tombstone],
        subjects: int,
        already: int,
        unknown: int | None,
        unit: FinishedUnit | None = None,
        name: _Name | None = None,
    ) -> int:
        request = self._ledger.watermark() + 1
        told = self._ledger.forgotten_after(request - 1)  # faster than counting
        forgotten = (told if told is not None else self._ledger.count_forgotten()) + len(new)
        revoked, exports = revoke(self._store, new, request)
        added = unit.put(request) if unit is not None else None
        body = Request(
            subjects=subjects,
            already_forgotten=already,
            unknown=unknown,
            revoked=tuple(revoked),
            serving=self._serving({cell for _, cell in new}, added),
            method=self._manifest.method.name,
            guarantee=self._manifest.method.guarantee,
            isolation=self._manifest.isolation,
            versions=_versions(),
            layers=self._keyring.layers,
            forgotten=forgotten,
            tombstones=tuple((hash_.hex(), cell) for hash_, cell in sorted(new)),
            request_id=name.request_id if name is not None else None,
            asked=name.asked if name is not None else None,
            exports=tuple(exports),
        )
        record(self._store, "request", request, vars(body), forgotten)
        if added is not None:  # its data was chosen as of this request, which is in the history only now
            self._store.authenticator.seal([str(added)])
        return request

    def _serving(self, reached: set[str], added: UnitId | None) -> dict[str, str | None]:
        """Return what serves now in the shards that a request reaches, having proven that it does not reach that.

        Args:
            reached: The cells that the request reaches.
            added: A unit that was made without the data of the request, and put in the place of one with it.
        """
        serving: dict[str, str | None] = {}
        for shard in sorted({Place.parse(cell).shard for cell in reached}):
            with ledger_errors("The name of a unit"):
                left: dict[UnitId, float | None] = {
                    parse_unit(name): score for name, score in self._ledger.scores(f"{shard}/").items()
                }
            missed = [str(unit) for unit in left if unit != added and reaches(unit.cells, reached)]
            if missed:
                raise StoreError(
                    f"The ledger of the store {self._store.folder} is damaged: its index does not know that the "
                    f"request reaches {missed[0]}. Nothing was changed. Restore ledger.db from a backup (what it lacks "
                    "is carried out again from the journal), or train again into a new folder."
                )
            best = survivors(left, {unit: score for unit, score in left.items() if score is not None})
            serving[str(shard)] = str(best[shard]) if best else None
        return serving

    def _finish(self, request: int) -> RequestRecord:
        try:
            try:
                write_journal(self._ledger, self._store.folder)
            finally:  # the disk may be full: all the more is to be erased
                erase_queued(self._store)
            write_journal(self._ledger, self._store.folder)
        except StoreError as error:
            raise StoreError(
                f"Request {request} is carried out, and nothing that it reached serves again, but what follows is not "
                f"done: {error} The next opening of the store goes on with it."
            ) from error
        return read_record(self._ledger, request)


@dataclass(frozen=True)
class _Name:
    """What a caller has named a request, and a digest of whom it is for."""

    request_id: str
    asked: str

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, str) or not 0 < len(self.request_id) <= 200:
            raise ConfigurationError(
                f"The name of the request is {self.request_id!r:.60}. Expected a text of 1 to 200 characters."
            )
        if not self.request_id.isprintable():
            raise ConfigurationError(
                f"The name of the request is {self.request_id!r}. Expected characters that can be printed."
            )


def _other_forms(subject: str) -> set[str]:
    if subject.isascii():
        return set()
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return {unicodedata.normalize(form, subject) for form in forms} - {subject}


def _text(time: datetime) -> str:
    try:
        return time.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    except OverflowError:
        raise ConfigurationError(
            f"The time {time.isoformat()} is at an end of the calendar: in UTC it has no date. Expected one between "
            "the years 1 and 9999."
        ) from None


def _shown(subjects: list[str]) -> str:
    return ", ".join(map(repr, subjects[:5])) + (f" and {len(subjects) - 5} more" if len(subjects) > 5 else "")


def _unknown_message(unknown: list[str], store: str) -> str:
    return (
        f"The store {store} has never seen {_shown(unknown)}. Expected ids of its training data; nothing was "
        "forgotten. Check the spelling, or pass strict=False: unknown subjects then get a tombstone, and never enter a "
        "later fit."
    )


@functools.cache  # reading the packages' metadata takes longer than all else of a request that revokes nothing
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lightning-s3t", "torch", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
