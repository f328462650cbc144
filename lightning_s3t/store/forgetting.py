"""Forgetting: a deletion request, revoked in one transaction and then erased."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

from lightning_s3t.core.events import Request, Schedule
from lightning_s3t.core.guarantees import Guarantee, Isolation
from lightning_s3t.core.receipts import Receipt
from lightning_s3t.core.units import Place, UnitId, reaches
from lightning_s3t.errors import ConfigurationError, StoreError, UnknownSubjectError
from lightning_s3t.plan import Partition, survivors
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.erasure import erase_queued, revoke
from lightning_s3t.store.history import read_receipt, record
from lightning_s3t.store.journal import write_journal
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Tombstone, ledger_errors
from lightning_s3t.store.registry import is_registering
from lightning_s3t.store.units import parse_unit

# what S3T promises of every unit that no request has reached
GUARANTEE: Guarantee = "exact"


class Forgetting:
    """Carries the requests of a store out, now or when they are due.

    Args:
        store: Where the store lies.
        keyring: Its keys.
        partition: Where subjects belong.
        isolation: How its units are kept apart.
    """

    def __init__(self, store: Backend, keyring: Keyring, partition: Partition, isolation: Isolation) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._partition = partition
        self._isolation = isolation

    def forget(self, subjects: Iterable[str], strict: bool) -> Receipt:
        """Carries a request out.

        Args:
            subjects: Canonical ids.
            strict: Refuse unknown subjects.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        with self._ledger.transaction():
            cells, already, unknown = self._look_up(subjects, strict)
            new = [(hash_, cell) for hash_, cell in cells.items() if hash_ not in already]
            request = self._carry_out(new, len(cells), len(already), unknown)
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
            ConfigurationError: The time has no time zone.
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
        """
        if due.tzinfo is None:
            raise ConfigurationError(f"The time {due.isoformat()} has no time zone. Expected one: 2027-01-31T12:00Z.")
        with self._ledger.transaction():
            cells, already, _ = self._look_up(subjects, strict)
            rows = [(hash_, _text(due), cell) for hash_, cell in sorted(cells.items()) if hash_ not in already]
            self._ledger.schedule(rows)
            if rows:
                pending = tuple((hash_.hex(), time, cell) for hash_, time, cell in rows)
                record(self._ledger, "schedule", None, asdict(Schedule(self._keyring.layers, pending)))
        write_journal(self._ledger, self._store.folder)
        return len(rows)

    def forget_due(self, now: datetime) -> Receipt | None:
        """Carries out what is due, as one request.

        Args:
            now: The time.

        Returns:
            The receipt; None if nothing is due.

        Raises:
            StoreError: A file could not be erased. The request is carried out all the same.
        """
        if not self._ledger.due(_text(now)):
            return None
        with self._ledger.transaction():
            new = self._ledger.due(_text(now))
            if not new:  # another process was faster
                return None
            unknown: int | None = None
            if is_registering(self._ledger):
                unknown = len(new) - len(self._ledger.bands(hash_ for hash_, _ in new))
            request = self._carry_out(new, len(new), 0, unknown)
        return self._finish(request)

    def _look_up(self, subjects: Iterable[str], strict: bool) -> tuple[dict[bytes, str], set[bytes], int | None]:
        asked = self._keyring.hashes(subjects)
        already = self._ledger.forgotten(asked)
        bands = self._ledger.bands(asked)
        unknown: int | None = None
        if is_registering(self._ledger):
            strangers = [subject for hash_, subject in asked.items() if hash_ not in bands and hash_ not in already]
            if strangers and strict:
                raise UnknownSubjectError(_unknown_message(strangers, str(self._store.folder)))
            unknown = len(strangers)
        places = self._partition.places(asked.values(), [bands.get(hash_, 0) for hash_ in asked])
        return {hash_: place.cell for hash_, place in zip(asked, places, strict=True)}, already, unknown

    def _carry_out(self, new: list[Tombstone], subjects: int, already: int, unknown: int | None) -> int:
        request = self._ledger.watermark() + 1
        told = self._ledger.forgotten_after(request - 1)  # faster than counting
        forgotten = (told if told is not None else self._ledger.count_forgotten()) + len(new)
        revoked, exports = revoke(self._store, new, request)
        body = Request(
            subjects=subjects,
            already_forgotten=already,
            unknown=unknown,
            revoked=tuple(revoked),
            serving=self._serving({cell for _, cell in new}),
            guarantee=GUARANTEE,
            isolation=self._isolation,
            versions=_versions(),
            layers=self._keyring.layers,
            forgotten=forgotten,
            tombstones=tuple((hash_.hex(), cell) for hash_, cell in sorted(new)),
            exports=tuple(exports),
        )
        record(self._ledger, "request", request, vars(body), forgotten)
        return request

    def _serving(self, reached: set[str]) -> dict[str, str | None]:
        """Return what serves now in the shards that a request reaches, having proven that it does not reach that."""
        serving: dict[str, str | None] = {}
        for shard in sorted({Place.parse(cell).shard for cell in reached}):
            with ledger_errors("The name of a unit"):
                left: dict[UnitId, float | None] = {
                    parse_unit(name): score for name, score in self._ledger.scores(f"{shard}/").items()
                }
            missed = [str(unit) for unit in left if reaches(unit.cells, reached)]
            if missed:
                raise StoreError(
                    f"The ledger of the store {self._store.folder} is damaged: its index does not know that the "
                    f"request reaches {missed[0]}. Nothing was changed. Restore ledger.db from a backup (what it lacks "
                    "is carried out again from the journal), or train again into a new folder."
                )
            best = survivors(left, {unit: score for unit, score in left.items() if score is not None})
            serving[str(shard)] = str(best[shard]) if best else None
        return serving

    def _finish(self, request: int) -> Receipt:
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
        return read_receipt(self._ledger, request)


def _text(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds")


def _unknown_message(unknown: list[str], store: str) -> str:
    shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    return (
        f"The store {store} has never seen {shown}. Expected ids of its training data; nothing was forgotten. Check "
        "the spelling, or pass strict=False: unknown subjects then get a tombstone, and never enter a later fit."
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
