"""Carrying requests of all kinds out: each once, in one transaction, and then its erasure and its receipt."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from lightning_s3t.core.events import MarkRow, Request, RequestKind
from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.receipts import RequestRecord
from lightning_s3t.core.units import Cell, UnitId, reaches
from lightning_s3t.errors import ConfigurationError, RolledBackError, StoreError
from lightning_s3t.plan import survivors
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.history import read_record, record
from lightning_s3t.store.keys.authentication import Change
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Mark, ledger_errors
from lightning_s3t.store.requests.effects import Effect, carry_out
from lightning_s3t.store.requests.erasure import erase_queued
from lightning_s3t.store.requests.journal import write_journal
from lightning_s3t.store.requests.leases import ReplicaWait
from lightning_s3t.store.requests.lookup import Asked, Lookup
from lightning_s3t.store.requests.names import Name, find_carried_out
from lightning_s3t.store.requests.scheduled import find_scheduled
from lightning_s3t.store.units import parse_unit


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
        return tuple(sorted({cell for _, cell in self.asked.to_correct})) if self.kind == "rectify" else ()


class RequestExecutor:
    """Carries out requests of any kind, and adds them to the history.

    Args:
        store: The store's backend.
        keyring: Its keys.
        manifest: The settings and the method of its units.
        lookup: Looks up the subjects of requests.
    """

    def __init__(self, store: Backend, keyring: Keyring, manifest: Manifest, lookup: Lookup) -> None:
        self._store = store
        self._ledger = store.ledger
        self._keyring = keyring
        self._manifest = manifest
        self._lookup = lookup
        self._behind: dict[int, dict[str, float]] = {}  # by request, the replicas that were noted at its COMMIT

    def carry_out_once(
        self,
        kind: RequestKind,
        subjects: Sequence[str],
        strict: bool,
        request_id: str | None,
        change_for: Callable[[Asked, int], Change],
    ) -> RequestRecord:
        """Carry out a request, unless one with its name was carried out before.

        Args:
            kind: The kind of request.
            subjects: Canonical ids.
            strict: Refuse unknown subjects.
            request_id: The caller's name for the request; None without one.
            change_for: Gives the change to the lists of people for the subjects and the number of the request.

        Returns:
            The receipt of the request, or of the one that was carried out before.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: A file could not be erased. The request is still carried out.
        """
        name = Name.of(kind, subjects, request_id, self._keyring)
        with self._ledger.transaction():
            request = self._find(name) if name is not None else None
            if request is None:
                asked, number = self._lookup.find(subjects, strict), self.next_number()
                request = self.note(self.carry_out(number, kind, asked, change_for(asked, number), name))
        return self.finish(request)

    def next_number(self) -> int:
        """Return the number of the next request; within a transaction."""
        return self._ledger.watermark() + 1

    def check_nameless(self, request_id: str | None) -> None:
        """Refuse a name for a request that waits for a fit.

        Args:
            request_id: The name, or None.

        Raises:
            ConfigurationError: There is one.
        """
        if request_id is not None:
            raise ConfigurationError(
                f"With the method {self._manifest.method.name!r} requests wait for the next fit, which carries all of "
                "them out as one, so they have no names. Leave request_id out: a repeated request counts once."
            )

    def _find(self, name: Name) -> int | None:
        """Return the earlier request with a name."""
        scheduled = find_scheduled(self._store, self._keyring, name.request_id)
        if scheduled is not None:
            raise ConfigurationError(
                f"The name {name.request_id!r} was given to a request that is {scheduled.state}. Expected a new name "
                "for each request. Nothing was changed."
            )
        found = find_carried_out(self._ledger, name)
        self._behind.pop(found or 0, None)  # a transaction of ours with this number may have been undone
        return found

    def carry_out(
        self, number: int, kind: RequestKind, asked: Asked, change: Change, name: Name | None = None
    ) -> CarriedOut:
        """Carry out a request, except for the event; within a transaction.

        Args:
            number: The number of the request.
            kind: The kind of request.
            asked: The subjects of the request.
            change: The change to the lists of people.
            name: The caller's name for it.
        """
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
            best = survivors(left, left)
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


def _rows(marks: Iterable[Mark]) -> tuple[MarkRow, ...]:
    return tuple((mark.kind, mark.hash.hex(), mark.number, mark.cell) for mark in marks)


@functools.cache  # reading the packages' metadata takes longer than the rest of a request that revokes nothing
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lightning-s3t", "torch", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
