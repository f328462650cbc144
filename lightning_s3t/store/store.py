"""The store: trained units, registered subjects, forgotten subjects."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lightning_s3t.core.events import Damage, Event
from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.core.generations import Generation
from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.receipts import Receipt, RequestRecord
from lightning_s3t.core.subjects import canonical_subject
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError, DamagedError, DataError, RevokedError, StoreError
from lightning_s3t.plan import Partition, merge_from
from lightning_s3t.store.backend import Backend, open_ledger
from lightning_s3t.store.building import BuildSession
from lightning_s3t.store.copies.copying import Progress, clear_begun, copy_store, settle
from lightning_s3t.store.copies.drill import Drill, compare, count_backup, prepare
from lightning_s3t.store.copies.exporting import check_exports, write_export
from lightning_s3t.store.copies.recipients import (
    Completion,
    HandedCopy,
    acknowledge,
    hand_over,
    read_completion,
    read_copies,
)
from lightning_s3t.store.disk.lock import FitLock, ledger_lock
from lightning_s3t.store.disk.scratch import Scratch
from lightning_s3t.store.folder import check_free, check_own_files, clear_half_written, make_folder
from lightning_s3t.store.generations import generations_of
from lightning_s3t.store.heads.certified import LinearHead
from lightning_s3t.store.heads.feature_sums import FeatureSums
from lightning_s3t.store.heads.floor import (
    FloorState,
    find_stale,
    load_published,
    load_sums,
    problems_of_replaced,
    read_states,
)
from lightning_s3t.store.history import (
    chain_digest,
    corrected_people,
    corrected_since,
    ever_revoked,
    has_given,
    read_records,
    record,
)
from lightning_s3t.store.keys.authentication import new_identity
from lightning_s3t.store.keys.identities import check_key, read_keys, read_or_make_keys
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.keys.keyring import notes_of as notes_of_keys
from lightning_s3t.store.ledgers.address import check_folder_name, has_ledger
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone, ledger_errors
from lightning_s3t.store.overview import Overview
from lightning_s3t.store.registry import is_registering
from lightning_s3t.store.requests.correcting import Correcting
from lightning_s3t.store.requests.erasure import clean_up, erase_queued, is_erased, remove_lineages
from lightning_s3t.store.requests.execution import RequestExecutor
from lightning_s3t.store.requests.forgetting import Forgetting
from lightning_s3t.store.requests.journal import make_journal, reconcile, write_journal
from lightning_s3t.store.requests.leases import Lease, ReplicaWait
from lightning_s3t.store.requests.lookup import Lookup
from lightning_s3t.store.requests.preview import Preview, preview
from lightning_s3t.store.requests.scheduled import ScheduledRequest, check_scheduled, find_scheduled, list_scheduled
from lightning_s3t.store.requests.scheduling import Scheduling
from lightning_s3t.store.settings import HINT, check_settings, normalise, notes_of, read_settings
from lightning_s3t.store.snapshots.keys import NOTE as KEYS
from lightning_s3t.store.snapshots.keys import check_keys
from lightning_s3t.store.snapshots.place import NOTE as PLACE
from lightning_s3t.store.snapshots.place import check_addresses
from lightning_s3t.store.snapshots.tensors import decode_snapshot
from lightning_s3t.store.units import ServableUnit, UnitRecord, find_snapshot, parse_unit, read_servable, read_units
from lightning_s3t.store.verification import (
    Verification,
    check_one_piece,
    damage_problem,
    damaged_units,
    left_problems,
    verify,
)

_Head = TypeVar("_Head")


class Store:
    """A folder with snapshots, and a ledger in it or in a database. Several processes may have it open at once.

    Make one with `Store.create` or open one with `Store.open`; it is a context manager.

    Args:
        backend: The store's backend.

    Example:
        >>> import tempfile
        >>> settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
        >>> with tempfile.TemporaryDirectory() as folder, Store.create(folder, settings) as store:
        ...     with store.building() as building:
        ...         _ = building.register(["user-1"])
        ...     receipt = store.forget(["user-1"])
        ...     receipt.subjects, receipt.serving, store.request_number
        (1, {'0': None}, 1)
    """

    def __init__(self, backend: Backend) -> None:
        self.path = path = backend.folder
        self._backend = backend
        self._ledger = ledger = backend.ledger
        settle(backend)
        with ledger_errors(f"The record of the settings of the store {path}"):
            self.settings = read_settings(ledger, path)
            self.manifest = Manifest.of(self.settings)
            self._keyring = Keyring(backend)
            self._partition = _partition_of(self.manifest, self._keyring.partition_secret)
        self._lookup = lookup = Lookup(backend, self._keyring, self._partition)
        executor = RequestExecutor(backend, self._keyring, self.manifest, lookup)
        self._scheduling = Scheduling(backend, self._keyring, lookup)
        self._forgetting = Forgetting(backend, self.manifest, lookup, executor, self._scheduling)
        self._correcting = Correcting(backend, self._keyring, self.manifest, lookup, executor)
        self._lock = FitLock(path)
        with ledger_errors(f"The history of the store {path}"):
            reconcile(backend, self._keyring)
            check_one_piece(ledger, path)
            with ledger.at_one_time():
                backend.authenticator.check()
            check_scheduled(backend, self._keyring)
            check_exports(backend)
        erase_queued(backend)
        with self._lock.no_fit() as free:
            if free:  # so half-done work is from a crash
                with ledger_lock(path):
                    clear_half_written(path)
                clear_begun(backend)
                clean_up(backend)
        ledger.clear_traces(patience=0.1)  # a crash may have come between an erasure and this
        write_journal(backend)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @classmethod
    def create(
        cls,
        path: str | Path,
        settings: Mapping[str, Any],
        register: bool = True,
        key: bytes | None = None,
        ledger: str | None = None,
        snapshots: str | Path | None = None,
        keys: str | Path | None = None,
    ) -> Store:
        """Create a store, or open the existing one if it was made with the same settings.

        Args:
            path: The folder.
            settings: JSON-ready; `settings["partition"]` has the arguments of `Partition`, and its "kind": "secret" or
                "public".
            register: Keep a registry of who is in the training data. Without a registry, nothing is stored per subject,
                and the store cannot detect that a request names an unknown subject.
            key: Its first key, 32 bytes; None to draw one. The environment's comes before it.
            ledger: Where to keep the ledger: "postgresql://user@host/database?schema=name", a schema of a PostgreSQL
                database that only this store uses; None for a file in the folder, or for its current location. The
                folder stores the address, so it is given only once.
            snapshots: Where to keep the snapshots of a store whose ledger is in a database: "s3://bucket/prefix", or a
                folder that all machines share; only this store uses it. None for the store's folder, or for where they
                are. The ledger stores it, so it is given only once.
            keys: A folder for keys, to encrypt each snapshot with a key of its own, which a request deletes: then no
                backup of the snapshots can be read. It must be in no such backup itself, and only this store uses it.
                None for no encryption, or for where the keys are. The ledger stores it, so it is given only once.

        Raises:
            ConfigurationError: There are risk bands, which need a registry, but `register` is False; or the key, the
                ledger's address or the location of the snapshots or keys is invalid.
            StoreMismatchError: There is one with other settings.
            StoreError: The folder holds something else, or a store with another key; or a request could not erase
                snapshots in their location.
        """
        folder = _folder_of(path)
        if key is not None:
            check_key(key)
        place = check_addresses(folder, ledger, snapshots)
        key_folder = check_keys(folder, keys, place)
        manifest = Manifest.of(normalise(settings))
        if _partition_of(manifest, b"").bands and not register:
            raise ConfigurationError("Risk bands need the registry, which stores them. Use S3T(keep_registry=True).")
        check_own_files(folder)
        if not has_ledger(folder):
            check_free(folder)
        make_folder(folder)
        with ledger_lock(folder):  # several processes may make it at once
            clear_half_written(folder)
            backend = Backend.of(folder, create=True, ledger=ledger, snapshots=place, keys=key_folder)
            kept = backend.ledger
            with _closed_on_error(backend):
                if "settings" not in kept.notes("settings"):  # new, or a crash came before
                    made = read_or_make_keys(folder, key)
                    make_journal(folder)
                    with kept.transaction():
                        kept.note({**notes_of_keys(made[:1]), **notes_of(settings), "register": _yes_or_no(register)})
                        kept.note(new_identity())
                        places = {PLACE: place, KEYS: key_folder}
                        kept.note({name: found for name, found in places.items() if found is not None})
                        backend.authenticator.renew()
        with _closed_on_error(backend):
            store = cls(backend)
            if key is not None and read_keys(folder)[0] != key:
                raise StoreError(
                    f"The store {folder} does not have the key given by `key`: another process created the store "
                    "first, or LIGHTNING_S3T_KEY is set. Call fit again, which uses the store's key, or leave out "
                    "`key`."
                )
            store.forget_due()
            store.check(settings, whole=True)
            check_settings({"register": is_registering(kept)}, {"register": register}, str(folder))
        return store

    @classmethod
    def open(cls, path: str | Path, forget_due: bool = True) -> Store:
        """Open a store, finish erasures that a crash interrupted, and carry out due requests.

        Args:
            path: The folder.
            forget_due: Carry out scheduled requests that are due.

        Raises:
            StoreError: The store is missing or damaged.
        """
        folder = _folder_of(path)
        check_own_files(folder)
        backend = Backend.of(folder)
        with _closed_on_error(backend):
            store = cls(backend)
            if forget_due:
                store.forget_due()
        return store

    @staticmethod
    def newest_event(path: str | Path) -> int:
        """Return the position of the newest event of a store, without opening it; 0 without events or without a store.

        Args:
            path: The folder.

        Raises:
            StoreError: It holds something else.
        """
        folder = _folder_of(path)
        check_own_files(folder)
        if not has_ledger(folder):
            return 0
        ledger = open_ledger(folder)
        try:
            return ledger.head()[0]
        finally:
            ledger.close()

    @property
    def partition(self) -> Partition:
        """The partition of the subjects, with the current number of generations."""
        return replace(self._partition, generations=max(len(self.generations) - 1, 0))

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The generations, starting with the first; none before the first fit or without a registry."""
        return generations_of(self._ledger)

    def generations_of(self, subjects: Iterable[str]) -> dict[str, int]:
        """Return the generation number of each registered subject.

        Args:
            subjects: Canonical ids.
        """
        with self._ledger.at_one_time():
            hashes = self._keyring.hashes(subjects)
            return {hashes[hash_]: number for hash_, number in self._ledger.generations(hashes).items()}

    def count_generations(self) -> tuple[int, ...]:
        """Return how many subjects of each generation are registered, and so not forgotten."""
        found = self._ledger.count_generations()
        return tuple(found.get(number, 0) for number in range(len(self.generations)))

    def consolidate(self, into: int | None = None) -> int | None:
        """Merge the newest generations of people into one, so that fewer and larger shards answer.

        The units of the merged generations are erased at once; those of the remaining one keep serving until the next
        fit, which trains them again on all its people. Nothing of the other shards is touched.

        Args:
            into: The generation that those after it become part of, from 1 on; None for the one that pays
                (`lightning_s3t.plan.merge_from`).

        Returns:
            Its number; None if it does not pay to merge any, and nothing was done.

        Raises:
            ConfigurationError: The generation does not exist, or is the last one.
            StoreError: A fit is running.
        """
        with self.building() as building:
            if into is None:
                into = merge_from(self.count_generations(), self._partition.shards)
            if into is not None:
                building.merge_generations(into)
        return into

    @property
    def identity(self) -> str:
        """A text that no other store has but those that this one was copied to: it says nothing about the contents."""
        return self._backend.authenticator.identity

    @property
    def request_number(self) -> int:
        """The number of the newest request, 0 before the first. Cheap enough to ask before every batch."""
        return self._ledger.watermark()

    def forget(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Carry out a deletion request: permanently revoke and erase the units that the subjects reached.

        If the method answers requests with a new model, the request is recorded, and the next fit carries it out.

        Revoking is one transaction, on disk when it returns: from then on no process can load a revoked unit, whatever
        happens. Erasing follows; a crash only delays it until the store is next opened. If replicas may answer for a
        while without a look (`Replica(max_staleness=...)`), it returns when none of them can be behind.

        Args:
            subjects: Their ids. Those forgotten before are counted, and change nothing.
            strict: Raise an error if the store has never seen one of the subjects. Otherwise such a subject gets a
                tombstone too, so that it never enters a later fit.
            request_id: The caller's name for the request, so that a retry does not count twice: with a name that was
                used before, and the same subjects, it returns the result of that request. The name is kept permanently,
                and is in the receipt: do not use personal data.

        Returns:
            The receipt, with details for the store's keeper only; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set, or is known in another Unicode form; nothing
                has changed then.
            ConfigurationError: The name was given to a request for other subjects, or cannot be one.
            StoreError: The ledger could not be written, and nothing has changed; or the request is carried out and a
                file could not be erased. The message says which.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.
        """
        return self._forgetting.forget(_canonical(subjects), strict, request_id)

    def rectify(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Remove what the subjects' old data reached, as `forget` does; the next fit trains on the new data.

        The subjects stay in the training data. Correct their rows before the request: a running fit has loaded the old
        rows, and does not train units with them; the next fit does. The contents of rows are not compared, so a
        repeated request also removes units that were trained since.

        If the method answers requests with a new model, the request is recorded, and the next fit that starts trains
        that model from scratch.

        Args:
            subjects: Their ids. Forgotten subjects have nothing to correct; restricted subjects stay restricted.
            strict: Raise an error if the store has never seen one of the subjects. Otherwise nothing is done for them:
                no unit holds their data.
            request_id: The caller's name for the request, so that a retry does not count twice, as for `forget`.

        Returns:
            The receipt, with details for the store's keeper only; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set, or is known in another Unicode form; nothing
                has changed then.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: The ledger could not be written, and nothing has changed; or the request is carried out and a
                file could not be erased. The message says which.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.
        """
        return self._correcting.rectify(_canonical(subjects), strict, request_id)

    def restrict(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Set aside the units that the subjects' data reached: they do not serve, and no fit trains on the data.

        The snapshots are kept, until `release` puts the units back or `forget` erases them. A fit in the meantime
        trains replacements without the data. Exported copies are erased; export again after a release.

        Args:
            subjects: Their ids. Those who are restricted already, or forgotten, are counted, and change nothing.
            strict: Raise an error if the store has never seen one of the subjects. Otherwise such a subject never
                enters a fit until it is released.
            request_id: The caller's name for the request, so that a retry does not count twice, as for `forget`.

        Returns:
            The receipt, with details for the store's keeper only.

        Raises:
            UnsupportedError: The method trains one model on everyone's data.
            UnknownSubjectError: A subject is unknown and `strict` is set, or is known in another Unicode form; nothing
                has changed then.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: The ledger could not be written, and nothing has changed; or the request is carried out and a
                file could not be erased. The message says which.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.

        Example:
            >>> import tempfile
            >>> settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
            >>> with tempfile.TemporaryDirectory() as folder, Store.create(folder, settings) as store:
            ...     first = store.restrict(["user-1"], strict=False)
            ...     restricted = store.restricted(["user-1", "user-2"])
            ...     first.kind, restricted, store.release(["user-1"]).kind, store.restricted(["user-1"])
            ('restrict', {'user-1'}, 'release', set())
        """
        return self._correcting.restrict(_canonical(subjects), strict, request_id)

    def release(self, subjects: Iterable[Any], request_id: str | None = None) -> RequestRecord:
        """End the restriction of subjects: units set aside serve again, bit for bit, and fits train on the data.

        Units with the data of other restricted subjects stay set aside. Units that were trained as their replacements
        are erased.

        Args:
            subjects: Their ids.
            request_id: The caller's name for the request, so that a retry does not count twice, as for `forget`.

        Returns:
            The receipt, with details for the store's keeper only.

        Raises:
            UnsupportedError: The method cannot restrict.
            UnknownSubjectError: A subject is not restricted. Nothing was changed.
            ConfigurationError: The name was given to another request, or is invalid.
            StoreError: The ledger could not be written, and nothing has changed; or the request is carried out and a
                file could not be erased. The message says which.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.
        """
        return self._correcting.release(_canonical(subjects), request_id)

    def schedule(
        self,
        subjects: Iterable[Any],
        due: datetime,
        strict: bool = True,
        request_id: str | None = None,
        *,
        received: date | None = None,
    ) -> int:
        """Schedule a deletion request: it is carried out by `forget_due`, or when the store is next opened.

        Args:
            subjects: Their ids. Of two times for a subject, the earlier counts.
            due: When, with a time zone.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, as for `forget`; use it with `cancel_request`.
            received: The day on which the person's letter came, for deadlines; None for today. It stays in the history.

        Returns:
            Number of recorded subjects; subjects who are already forgotten are not recorded.

        Raises:
            ConfigurationError: The time has no time zone, or is at an end of the calendar.
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.
        """
        return self._scheduling.schedule(_canonical(subjects), due, strict, request_id, received)

    def scheduled_request(self, request_id: str) -> ScheduledRequest | None:
        """Return a scheduled request by its caller's name; None if it does not exist.

        Args:
            request_id: The name.
        """
        with self._ledger.at_one_time():
            return find_scheduled(self._backend, self._keyring, request_id)

    def cancel_request(self, request_id: str) -> int:
        """Cancel a scheduled request by its name, before it is carried out; repeating this changes nothing.

        Args:
            request_id: The name. Subjects in another scheduled request still wait for that one.

        Returns:
            Number of subjects who no longer wait.

        Raises:
            UnknownSubjectError: The request does not exist, or was carried out. Nothing was changed.
        """
        return self._scheduling.cancel_request(request_id)

    def refuse_request(self, request_id: str, reason: str) -> int:
        """Record that a request is refused, with the reason; a scheduled one is then not carried out.

        From then on, no request with this name is accepted. Name and reason stay in the history forever, so they must
        not contain personal data.

        Args:
            request_id: The request's name, scheduled or not. Refusing it twice for the same reason changes nothing.
            reason: Why, on one line of up to 500 characters.

        Returns:
            Number of subjects who no longer wait.

        Raises:
            ConfigurationError: The request was carried out, cancelled, or refused for another reason, or the name or
                the reason is invalid. Nothing was changed.
        """
        return self._scheduling.refuse_request(request_id, reason)

    def scheduled_requests(self) -> list[ScheduledRequest]:
        """Return all requests that were ever scheduled or refused, in that order, with their outcome."""
        with self._ledger.at_one_time():
            return list_scheduled(self._backend, self._keyring)

    def preview(self, subjects: Iterable[Any]) -> Preview:
        """Return the state of subjects, and the effect of a request to forget them now. Nothing is changed.

        Args:
            subjects: Their ids.

        Raises:
            UnknownSubjectError: A subject is known in another Unicode form.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.

        Example:
            >>> import tempfile
            >>> settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
            >>> with tempfile.TemporaryDirectory() as folder, Store.create(folder, settings) as store:
            ...     found = store.preview(["user-1"])
            ...     found.subjects, found.revoked
            ({'user-1': 'unknown'}, ())
        """
        canonical = _canonical(subjects)
        with self._ledger.at_one_time():
            return preview(self._backend, self._keyring, self._lookup, canonical)

    def receipt_of(self, request_id: str) -> RequestRecord | None:
        """Return the receipt of a request by its caller's name; None if no such request was carried out.

        Args:
            request_id: The name.
        """
        number = self._ledger.request_named(request_id)
        return read_records(self._backend, number - 1, number)[0] if number is not None else None

    def cancel(self, subjects: Iterable[Any]) -> int:
        """Cancel scheduled requests before they are carried out. Forgotten data cannot be restored.

        Args:
            subjects: The ids of the subjects who stay.

        Returns:
            Number of cancelled subjects.

        Raises:
            UnknownSubjectError: Nothing is scheduled for one of them. Nothing was changed.
            DataError: An id is not text or an integer, or `subjects` is not a collection of ids, or is empty.
        """
        return self._scheduling.cancel(_canonical(subjects))

    def forget_due(self, now: datetime | None = None) -> RequestRecord | None:
        """Carry out the due scheduled requests as one request.

        Args:
            now: The time; None for the current time.

        Returns:
            The receipt; None if nothing is due, or if it waits for a fit.
        """
        return self._forgetting.forget_due(now or datetime.now(timezone.utc))

    def is_erased(self, request: int) -> bool:
        """Return whether no file still has to be erased for a request, or for one before it.

        Args:
            request: The request's number.
        """
        return is_erased(self._backend, request)

    def erase(self) -> None:
        """Erase files whose erasure failed, as opening the store does; nothing happens if there are none.

        Raises:
            StoreError: A file still could not be erased.
        """
        if not self.is_erased(self.request_number):
            erase_queued(self._backend)
            write_journal(self._backend)

    def due(self) -> list[Tombstone]:
        """Return the due subjects: the keyed hash of each, and the cell of the data."""
        return self._forgetting.due(datetime.now(timezone.utc))

    def among(self, tombstones: Iterable[Tombstone], subjects: Iterable[str]) -> set[str]:
        """Return those of the subjects whom tombstones are of.

        Args:
            tombstones: The result of `due`.
            subjects: Canonical ids.
        """
        hashes = {hash_ for hash_, _ in tombstones}
        return {subject for hash_, subject in self._keyring.hashes(subjects).items() if hash_ in hashes}

    def pending(self) -> list[tuple[str, int]]:
        """Return the times (UTC, ISO 8601) of scheduled requests, and of how many subjects."""
        return self._ledger.schedules()

    def receipts(self, after: int = 0) -> list[RequestRecord]:
        """Return the receipts of all requests, in order.

        Args:
            after: Only those of requests after this one.
        """
        return read_records(self._backend, after, self.request_number)

    def history(self) -> list[Event]:
        """Return all events in order, after checking them.

        They hold no ids: a subject is a hash under the store's key.

        Raises:
            StoreError: One was changed.
        """
        with self._ledger.at_one_time():
            return list(self._backend.authenticator.events_since(1))

    def ages(self) -> dict[UnitId, int]:
        """Return the number of the newest request when the data of each unit was chosen.

        A unit does not hold data of subjects who were forgotten by then.
        """
        with ledger_errors("The name of a unit"):
            return {parse_unit(name): as_of for name, as_of in self._ledger.ages().items()}

    def has_given(self, receipt: Receipt) -> bool:
        """Return whether the store's history, unchanged, contains the request of a receipt.

        Args:
            receipt: The receipt; it may not include files that were erased later.
        """
        return has_given(self._ledger.events(), receipt)

    def revoked(self) -> set[UnitId]:
        """Return every unit that a request or damage has ever taken away; it may have been trained again since."""
        return ever_revoked(self._ledger)

    def chain_digest(self, position: int) -> str | None:
        """Return the digest at a position of the chain of events, to compare with a receipt's.

        None beyond the chain's end, or if an event up to there was changed after it was written.

        Args:
            position: Counted from 1.
        """
        return chain_digest(self._ledger, position)

    def lease(self, max_staleness: float) -> Lease:
        """Return a lease for a replica to answer without a look for a while; requests wait until it expires.

        Args:
            max_staleness: For how many seconds after a look it may answer.

        Raises:
            ConfigurationError: It is not a time that a replica may have.
        """
        return Lease(self._ledger, max_staleness)

    def replica_wait(self, request: int) -> ReplicaWait:
        """Return what tells whether replicas may still answer from what a request has revoked.

        `forget` and the others wait by themselves; this is for those who look at their requests meanwhile.

        Args:
            request: The number of the request.
        """
        return ReplicaWait(self._ledger, request)

    def check(self, settings: Mapping[str, Any], hint: str = HINT, whole: bool = False) -> None:
        """Compare settings with those that the store was made with.

        Args:
            settings: All of them, or a part.
            hint: The advice at the end of the message.
            whole: Whether they are all.

        Raises:
            StoreMismatchError: Naming every one that differs.
        """
        check_settings(self.settings, settings, str(self.path), hint, whole)

    @property
    def options(self) -> dict[str, Any]:
        """Settings that may change from fit to fit, JSON-ready: which sequences, the app's config."""
        with ledger_errors(f"The record of the fits of the store {self.path}"):
            found: dict[str, Any] = json.loads(self._ledger.notes("options").get("options", "{}"))
        return found

    def subject_hashes(self, subjects: Iterable[str]) -> dict[str, str]:
        """Return a keyed hash of each subject that stays the same when the key is rotated: for digests.

        Args:
            subjects: Canonical ids.
        """
        return self._keyring.first_hashes(subjects)

    def status(self) -> Overview:
        """Return the state of the store: which units serve, which are revoked or missing, and how long it will last."""
        return Overview.of(self._backend, self.partition, self.manifest, self.options, len(self.due()))

    def rotate_key(self) -> None:
        """Start using a new key for subjects' ids. No unit has to be trained again.

        Raises:
            StoreError: A fit is running; or the environment provides the keys, and has no new one.
        """
        with self._lock.hold():
            reconcile(self._backend, self._keyring)  # a rotation that only the journal knows has its key already
            self._keyring.rotate()
            write_journal(self._backend)
            self._ledger.rewrite()

    def copy(
        self,
        target: str | Path,
        ledger: str | None = None,
        snapshots: str | Path | None = None,
        progress: Progress = lambda done, total: None,
        keys: str | Path | None = None,
    ) -> None:
        """Copy the store to another kind of ledger or snapshots; the copy then replaces it.

        Requests during the copy are carried out, and are in the copy. At the end this store is retired: from then on
        every process that uses it gets a `MovedError`, and its snapshots are erased. Even after an interruption,
        exactly one of the two answers; if it is this one, call `copy` again.

        Args:
            target: A new or empty folder.
            ledger: The address of the copy's ledger, as for `create`; None for a file in its folder.
            snapshots: Where to put its snapshots, as for `create`; None for its folder.
            progress: Called with how many snapshots are copied, of how many.
            keys: The folder of the copy's keys, as for `create`. A store with keys can only be copied to one with other
                keys.

        Raises:
            ConfigurationError: An address is invalid; or the store has a floor, which a ledger in a database cannot
                keep; or it has keys, and `keys` is missing.
            StoreError: A fit is running; or something could not be read or written, or the target is not empty. This
                store then keeps answering.
        """
        with self._lock.hold():
            clean_up(self._backend)
            copy_store(self._backend, _folder_of(target), ledger, snapshots, keys, progress)

    def drill(self, backup: str | Path) -> Drill:
        """Rehearse a restore of the ledger, on copies: the store keeps running, and is not changed.

        A backup of the ledger is opened with copies of the journal and the keys, in the store's `scratch` folder, as if
        it had been restored in its place: missing requests are carried out again from the journal. Snapshots are read
        where they are. The report says whether everything that was carried out would be restored, and how long it
        takes.

        Args:
            backup: A ledger.db or a folder with one. For a ledger in PostgreSQL: the address of a schema in another
                database that was restored from a backup; it is changed.

        Raises:
            ConfigurationError: The backup does not exist, or is the store's own ledger.
        """
        started, seconds = time.monotonic(), dict[str, float]()

        def took(step: str) -> None:
            nonlocal started
            seconds[step], started = time.monotonic() - started, time.monotonic()

        with closing(Scratch(self.path)) as scratch:
            found = Drill(str(backup), seconds=seconds)
            try:
                backend, today = prepare(self._backend, str(backup), scratch)
                with closing(backend.ledger):
                    found = count_backup(found, backend.ledger, self._ledger, today)
                    took("copy")
                    restored = Store(backend)
                    took("open")
                    verified = restored.verify()
                    took("verify")
                    expected = {
                        *map(damage_problem, verified.damaged),
                        *left_problems(backend),
                        *problems_of_replaced(backend, today.heads),
                    }
                    problems = [problem for problem in verified.problems if problem not in expected]
                    serving = {str(unit) for unit in restored.alive()}
                    return replace(
                        found,
                        restored_units=len(serving & today.digests.keys()),
                        problems=(*compare(backend, today), *problems),
                    )
            except ConfigurationError:
                raise
            except StoreError as error:
                return replace(found, problems=(str(error),))

    def count_events(self) -> int:
        """Return how many events are in the history."""
        return self._ledger.count_events()

    def count_forgotten(self) -> int:
        """Return how many subjects are forgotten."""
        return self._ledger.count_forgotten()

    def forgotten(self, subjects: Iterable[str]) -> set[str]:
        """Return those of the subjects that must never be trained on again.

        Args:
            subjects: Canonical ids.
        """
        return self._keyring.forgotten(subjects)

    def restricted(self, subjects: Iterable[str]) -> set[str]:
        """Return those of the subjects that are restricted: no fit trains on them until they are released.

        Args:
            subjects: Canonical ids.
        """
        return self._keyring.restricted(subjects)

    def count_restricted(self) -> int:
        """Return how many subjects are restricted."""
        return len(self._ledger.marks("restricted"))

    def set_aside(self) -> list[UnitId]:
        """Return the units that are set aside; of one name there may be several, for restrictions that overlap."""
        with ledger_errors("The name of a unit"):
            return sorted(UnitId.parse(one.name) for one in self._ledger.aside())

    def corrections(self) -> list[Mark]:
        """Return the corrections that wait for a fit, where the method replaces its model."""
        return self._ledger.marks("awaiting")

    def corrected_since(self, position: int) -> set[str]:
        """Return the cells with data that was corrected after an event of the history.

        Args:
            position: The event's position in the chain.
        """
        return corrected_since(self._ledger, position)

    def corrected_among(self, subjects: Iterable[str], position: int) -> set[str]:
        """Return those of the subjects whose data was corrected after an event of the history.

        Args:
            subjects: Canonical ids. Who is restricted may be missing in the result.
            position: The event's position in the chain.
        """
        with self._ledger.at_one_time():
            hashes = self._keyring.hashes(subjects)
            return {hashes[hash_] for hash_ in corrected_people(self._ledger, hashes, position)}

    @contextmanager
    def building(self) -> Iterator[BuildSession]:
        """Yield the operations for a fit, and exclude other fits while the block runs.

        The remains of an interrupted fit are cleaned up first.

        Raises:
            StoreError: Another fit runs on this store.
        """
        with self._lock.hold():
            method = self.manifest.method
            session = BuildSession(self._backend, self._keyring, self._partition, self._forgetting, method)
            session.clear_attempts()
            try:
                yield session
            finally:
                session.close()

    def alive(self) -> dict[UnitId, UnitRecord]:
        """Return the units that may serve: built and not revoked, like all their ancestors."""
        return read_units(self._ledger)

    def candidates(self) -> dict[UnitId, ServableUnit]:
        """Return the same units as `alive`, with the data needed to choose and load survivors."""
        return read_servable(self._ledger)

    def load(self, unit: UnitId, snapshot: str | None = None) -> dict[str, Tensor]:
        """Read the tensors that a unit owns.

        Args:
            unit: The unit.
            snapshot: The expected digest of its snapshot; None for any.

        Raises:
            RevokedError: It is revoked, or was never built, or was trained again since it had this snapshot.
            DamagedError: Its snapshot is missing or damaged.
        """
        lineage = [str(ancestor) for ancestor in unit.lineage]
        found = self._backend.authenticator.check_artifacts(lineage)
        if len(found) < len(lineage) or snapshot not in (None, found[lineage[-1]].digest):
            raise self._revoked(unit)
        digest, what = found[lineage[-1]].digest, f"unit {lineage[-1]}"
        try:
            data = self._backend.snapshots.get(digest, what)
        except DamagedError:
            if find_snapshot(self._ledger, lineage) != digest:
                raise self._revoked(unit) from None
            raise
        if find_snapshot(self._ledger, lineage) != digest:  # revoked while it was read
            raise self._revoked(unit)
        return decode_snapshot(data, what)

    def load_base(self) -> dict[str, Tensor] | None:
        """Read the head's state before any training; None before the first fit."""
        digest = self._ledger.notes("base").get("base")
        if digest is None:
            return None
        what = "the head's initial state"
        return decode_snapshot(self._backend.snapshots.get(digest, what), what)

    def heads(self) -> dict[str, FloorState]:
        """Return the records of closed-form heads, by the source of their features: "pretrained", or a unit's name."""
        return read_states(self._backend)

    def load_head(self, source: str = PRETRAINED) -> FeatureSums | None:
        """Read the sums that a closed-form head is solved from; None if the store has none.

        Args:
            source: The source of its features.

        Raises:
            DamagedError: Their snapshot is missing or damaged; the next fit makes it again.
        """
        return self._read_head(source, lambda state: load_sums(self._backend, state))

    def load_serving_head(self, source: str = PRETRAINED) -> tuple[str, FeatureSums | LinearHead] | None:
        """Read what a closed-form head answers from, with its digest; None if the store has none.

        These are the sums that it is solved from, or a certified head as it was published.

        Args:
            source: The source of its features.

        Raises:
            DamagedError: Its snapshot is missing or damaged; the next fit makes it again.
        """

        def read(state: FloorState) -> tuple[str, FeatureSums | LinearHead] | None:
            if state.certified is None:
                return state.digest, load_sums(self._backend, state)
            return (state.published, LinearHead.of(load_published(self._backend, state))) if state.published else None

        return self._read_head(source, read)

    def _read_head(self, source: str, read: Callable[[FloorState], _Head | None]) -> _Head | None:
        """Read the snapshot of a closed-form head, and again if a request has replaced it in the meantime."""
        while True:
            state = self.heads().get(source)
            if state is None:
                return None
            with self._ledger.at_one_time():
                self._backend.authenticator.check()
            try:
                return read(state)
            except DamagedError:
                if self.heads().get(source) == state:
                    raise

    def has_learned_from(self, source: str, subjects: Sequence[str], tags: Sequence[bytes]) -> bool:
        """Return whether a closed-form head was built from exactly these rows.

        Args:
            source: The network that its features come from.
            subjects: The subject of each row.
            tags: A digest of each row's contents; empty if contents are not compared.
        """
        with self._ledger.at_one_time():
            rows = zip(self._keyring.hash_each(subjects), tags, strict=True)
            stale, missing = find_stale(self._backend, source, rows)
        return not stale and not missing

    def export(self, name: str, unit: UnitId, digests: Sequence[str], files: Mapping[Path, bytes]) -> None:
        """Write files made from a unit outside the store, so that a request which reaches it names and erases them.

        Args:
            name: The result of `make_export_name` for the unit.
            unit: The unit.
            digests: Those of the snapshots of its lineage that the files were made from.
            files: The contents to write, by path. Their folders must be there, the files must not.

        Raises:
            ConfigurationError: A file already exists, or would be inside the store.
            RevokedError: A request has reached the unit; nothing is left of the files.
            StoreError: A file could not be written; the others were removed.
        """
        write_export(self._backend, name, unit, digests, files)

    def exports(self) -> list[str]:
        """Return the names of the exported copies that no request has reached."""
        return [export.name for export in self._ledger.exports()]

    def hand_over(self, export: str, recipient: str) -> None:
        """Note that a recipient was handed an exported copy, so that a request which reaches it is not complete yet.

        Args:
            export: The copy's name, which `export` of a served model returned.
            recipient: The holder: a team, a company, a model that was distilled from it. Not a person's name: it stays
                in the history.

        Raises:
            ConfigurationError: The copy does not exist, a request has reached it, or the recipient has no name.
        """
        hand_over(self._backend, export, recipient)

    def acknowledge(self, export: str, recipient: str) -> None:
        """Note that a recipient has erased a copy that a request reached.

        Args:
            export: The copy's name.
            recipient: As it was handed over.

        Raises:
            ConfigurationError: The recipient was not handed the copy, or no request has reached it.
        """
        acknowledge(self._backend, export, recipient)

    def handed_copies(self) -> list[HandedCopy]:
        """Return the copies that were handed to recipients, with their requests and acknowledgements."""
        with self._ledger.at_one_time():
            return read_copies(self._backend)

    def completion(self, request: int) -> Completion:
        """Return whether everything that a request reached is erased, including copies handed to recipients.

        Args:
            request: The request's number.

        Raises:
            ConfigurationError: The request does not exist.
        """
        return read_completion(self._backend, request)

    def verify(self) -> Verification:
        """Check everything: the chain of events, the journal, tombstones, every snapshot, unregistered files.

        Damaged units are taken out of service; the next fit trains them again.
        """
        with self._lock.no_fit() as free:
            found = verify(self._backend, self._keyring, quiet=free)
        if found.damaged:
            self._take_out(found.damaged)
        return found

    def _take_out(self, damaged: Iterable[UnitId]) -> list[UnitId]:
        """Take damaged units out of service, with all units built on them, and record it in the chain of events.

        Args:
            damaged: The units.

        Returns:
            All that were taken out.
        """
        tops = set(damaged)  # found before the transaction: reading snapshots takes long
        with self._ledger.transaction():
            gone = remove_lineages(self._backend, tops)
            if gone:
                record(self._backend, "damage", None, asdict(Damage(tuple(map(str, gone)))))
        erase_queued(self._backend)
        write_journal(self._backend)
        return gone

    def take_out_damaged(self) -> list[UnitId]:
        """Read every snapshot, and take units out of service whose snapshot is missing or damaged."""
        return self._take_out(damaged_units(self._backend))

    def provenance(self, unit: UnitId | None = None) -> list[dict[str, Any]]:
        """Return the provenance of the units that are alive.

        Args:
            unit: Only this one's.

        Raises:
            RevokedError: It is not alive.
        """
        if unit is None:
            return [record.provenance for record in self.alive().values()]
        alive = read_units(self._ledger, [str(ancestor) for ancestor in unit.lineage])
        if unit not in alive:
            raise self._revoked(unit)
        return [alive[unit].provenance]

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def _revoked(self, unit: UnitId) -> RevokedError:
        return RevokedError(
            f"The store {self.path} has no unit {unit}: it was revoked, is set aside, or was never trained."
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _closed_on_error(backend: Backend) -> Iterator[None]:
    """Close a ledger if the block, which opens its store, fails."""
    try:
        yield
    except OSError as error:
        backend.ledger.close()
        raise StoreError(f"The store cannot be opened: {error}.") from error
    except BaseException:
        backend.ledger.close()
        raise


def _folder_of(path: str | Path) -> Path:
    check_folder_name(path)
    return Path(path).absolute()


def _partition_of(manifest: Manifest, secret: bytes) -> Partition:
    part = manifest.partition
    return Partition(part.shards, part.slices, part.seed, tuple(part.bands), secret if part.kind == "secret" else b"")


def _yes_or_no(flag: bool) -> str:
    return "yes" if flag else "no"


def _canonical(subjects: Iterable[Any]) -> list[str]:
    # the letters of "user-17" are ids too, and so are the bytes of b"17": they are not meant
    if isinstance(subjects, (str, bytes, bytearray)) or not isinstance(subjects, Iterable):
        raise DataError(
            f"The subjects are {type(subjects).__name__}. Expected a list of ids, even for one person: "
            'forget(["user-17"]).'
        )
    found = [canonical_subject(subject) for subject in subjects]
    if not found:
        raise DataError(
            "The request has no ids. Expected at least one. If the ids come from another program, it may have failed."
        )
    return found
