"""The store: what is trained, who is in it, who is forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s3t.errors import ConfigurationError, DamagedError, RevokedError, StoreError
from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store.attempt import Attempt
from lightning_s3t.store.chain import append
from lightning_s3t.store.erasure import clean_up, erase_pending, queue_lineages
from lightning_s3t.store.folder import check_free, clear_half_written, make_folder
from lightning_s3t.store.forgetting import Forgetting
from lightning_s3t.store.identities import read_or_make_keys
from lightning_s3t.store.journal import make_journal, reconcile, write_journal
from lightning_s3t.store.keyring import Keyring, put_keys
from lightning_s3t.store.ledger import FILE, Ledger, closed_on_error
from lightning_s3t.store.legible import legible
from lightning_s3t.store.lock import FitLock, ledger_lock
from lightning_s3t.store.record import Candidate, UnitRecord
from lightning_s3t.store.registry import is_registering, register
from lightning_s3t.store.requests import DeletionRequests
from lightning_s3t.store.settings import HINT, check_settings, normalise, read_settings, rows_of
from lightning_s3t.store.snapshots import (
    encode_snapshot,
    read_snapshot,
    snapshot_path,
    write_snapshot,
)
from lightning_s3t.store.units import find_snapshot, reached_since, read_candidates, read_units
from lightning_s3t.store.verification import Verification, check_one_piece, damaged_units, verify


class Store(DeletionRequests):
    """A folder with a ledger and snapshots. Several processes may have it open at once.

    Make one with `Store.create` or open one with `Store.open`; it is a context manager.

    Args:
        path: The folder.
        ledger: Its database.

    Example:
        >>> import tempfile
        >>> settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
        >>> with tempfile.TemporaryDirectory() as folder, Store.create(folder, settings) as store:
        ...     store.register(["user-1"])
        ...     receipt = store.forget(["user-1"])
        ...     receipt.subjects, receipt.serving, store.request_number
        (1, {'0': None}, 1)
    """

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self._ledger = ledger
        with legible(f"What the store {path} was made with"):
            self.settings = read_settings(ledger, path)
            self.partition = Partition(**self.settings["partition"])
            self._keyring = Keyring(path, ledger)
        super().__init__(ledger, Forgetting(path, ledger, self._keyring, self.partition))
        self._lock = FitLock(path)
        with legible(f"The history of the store {path}"):
            reconcile(ledger, path, self._keyring)
            check_one_piece(ledger, path)
        erase_pending(ledger, path)
        with self._lock.no_fit() as free:
            if free:  # so what looks half-done is what a crash has left
                with ledger_lock(path):
                    clear_half_written(path)
                clean_up(ledger, path)
        ledger.truncate_log(patience=0.1)  # a crash may have come between an erasure and this
        write_journal(ledger, path)

    @classmethod
    def create(cls, path: str | Path, settings: Mapping[str, Any], register: bool = True) -> Store:
        """Makes a store, or opens the one that is there if it was made with the same settings.

        Args:
            path: The folder.
            settings: JSON-ready; `settings["partition"]` has the arguments of `Partition`.
            register: Keep a registry of who is in the training data. Without, nothing is stored per subject, and nobody
                can tell whether a request names somebody who is unknown.

        Raises:
            ConfigurationError: There are bands of risk, which only a registry can keep, and `register` is off.
            StoreMismatchError: There is one with other settings.
            StoreError: The folder holds something else.
        """
        folder = Path(path).absolute()
        if Partition(**settings["partition"]).bands and not register:
            raise ConfigurationError("Bands of risk need the registry: they are kept in it. Leave `register` on.")
        if not (folder / FILE).exists():
            check_free(folder)
        make_folder(folder)
        with ledger_lock(folder):  # several processes may make it at once
            clear_half_written(folder)
            ledger = Ledger(folder, create=True)
            with closed_on_error(ledger):
                if ledger.get("settings") is None:  # new, or a crash came before
                    keys = read_or_make_keys(folder)
                    make_journal(folder)
                    with ledger.transaction() as connection:
                        put_keys(connection, keys[:1])
                        rows = [
                            *rows_of(settings),
                            ("register", "yes" if register else "no"),
                        ]
                        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        with closed_on_error(ledger):
            store = cls(folder, ledger)
            store.forget_due()
            store.check(settings, whole=True)
            check_settings({"register": is_registering(ledger)}, {"register": register}, str(folder))
        return store

    @classmethod
    def open(cls, path: str | Path, forget_due: bool = True) -> Store:
        """Opens a store, finishes the erasures that a crash has left, and carries out what has become due.

        Args:
            path: The folder.
            forget_due: Carry out scheduled requests that are due.

        Raises:
            StoreError: There is no store, or it is damaged.
        """
        folder = Path(path).absolute()
        ledger = Ledger(folder)
        with closed_on_error(ledger):
            store = cls(folder, ledger)
            if forget_due:
                store.forget_due()
        return store

    def check(self, settings: Mapping[str, Any], hint: str = HINT, whole: bool = False) -> None:
        """Compares settings with those that the store was made with.

        Args:
            settings: All of them, or a part.
            hint: What to do, for the message.
            whole: Whether they are all.

        Raises:
            StoreMismatchError: Naming every one that differs.
        """
        check_settings(self.settings, settings, str(self.path), hint, whole)

    @property
    def options(self) -> dict[str, Any]:
        """Settings that may change from fit to fit, JSON-ready: which orders, the app's config."""
        with legible(f"What the store {self.path} notes of its fits"):
            found: dict[str, Any] = json.loads(self._ledger.get("options") or "{}")
        return found

    @options.setter
    def options(self, options: Mapping[str, Any]) -> None:
        self._ledger.put("options", json.dumps(normalise(options), sort_keys=True))

    def register(self, subjects: Iterable[str] | Mapping[str, int]) -> None:
        """Notes who is in the training data. Who is forgotten stays forgotten.

        Args:
            subjects: Canonical ids, streamed; or their bands of risk by id, where the partition has bands.

        Raises:
            DataError: A subject was registered with another band, so units hold it at another place; nothing changes.
        """
        if not is_registering(self._ledger):
            return
        bands = subjects.items() if isinstance(subjects, Mapping) else ((subject, 0) for subject in subjects)
        register(self._ledger, self._keyring, bands, self.partition)

    def subject_hash(self, subject: str) -> str:
        """Returns a keyed hash of a subject that stays the same when the key is rotated: for digests.

        Args:
            subject: A canonical id.
        """
        return self._keyring.first_hash(subject)

    def rotate_key(self) -> None:
        """Takes a new key for subjects' ids into use. Nothing has to be trained again.

        Raises:
            StoreError: A fit is running; or the environment gives the keys, and has no new one.
        """
        with self._lock.hold():
            self._keyring.rotate()
            write_journal(self._ledger, self.path)
            self._ledger.clear_free_pages()

    def forgotten(self, subjects: Iterable[str]) -> set[str]:
        """Returns those of the subjects that must never be trained on again.

        Args:
            subjects: Canonical ids.
        """
        return self._keyring.present("tombstones", subjects)

    @contextmanager
    def fit_lock(self) -> Iterator[None]:
        """Keeps other fits out while the block runs, and clears away what a fit that was cut has left.

        Raises:
            StoreError: Another fit runs on this store.
        """
        with self._lock.hold():
            clean_up(self._ledger, self.path)
            yield

    def clear_attempts(self) -> None:
        """Clears away what units have left whose training was cut; only for the holder of the fit lock."""
        clean_up(self._ledger, self.path)

    def alive(self) -> dict[UnitId, UnitRecord]:
        """Returns the units that may serve: built, not revoked, and all that they are built of too."""
        return read_units(self._ledger)

    def candidates(self) -> dict[UnitId, Candidate]:
        """Returns the same units as `alive`, with what has to be known to choose and load survivors."""
        return read_candidates(self._ledger)

    def start_unit(self, unit: UnitId, key: str, as_of: int | None = None) -> Attempt:
        """Notes that a unit is about to be trained.

        Args:
            unit: The unit.
            key: The digest of all that may influence it.
            as_of: The request number when its data was chosen; None for now.

        Raises:
            RevokedError: A request since then reaches the unit.
        """
        number = self.request_number if as_of is None else as_of
        if reached_since(self._ledger, unit, number):
            raise RevokedError(f"Unit {unit} was revoked before it was trained. The next fit trains it anew.")
        with self._ledger.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?)", (str(unit), key))
        return Attempt(self._ledger, self.path, unit, key, number)

    def drop(self, units: Iterable[UnitId]) -> None:
        """Takes units out that are stale, with all that was built on them, and erases them.

        Args:
            units: The units.
        """
        with self._ledger.transaction():
            queue_lineages(self._ledger, self.path, units)
        erase_pending(self._ledger, self.path)

    def load(self, unit: UnitId) -> dict[str, Tensor]:
        """Reads the tensors that a unit owns.

        Args:
            unit: The unit.

        Raises:
            RevokedError: It is revoked, or was never built.
            DamagedError: Its snapshot is missing or damaged.
        """
        digest = find_snapshot(self._ledger, unit)
        if digest is None:
            raise self._revoked(unit)
        try:
            tensors = read_snapshot(self.path, digest, f"unit {unit}")
        except DamagedError:
            if find_snapshot(self._ledger, unit) != digest:
                raise self._revoked(unit) from None
            raise
        if find_snapshot(self._ledger, unit) != digest:  # revoked while it was read
            raise self._revoked(unit)
        return tensors

    def save_base(self, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the head as it stood before any training, once.

        Args:
            tensors: Its tensors, by name.

        Raises:
            StoreError: There is one already.
        """
        if self._ledger.get("base") is not None:
            raise StoreError(f"The store {self.path} has its base already. It is written once, before any training.")
        digest, data = encode_snapshot(tensors)
        with self._ledger.transaction() as connection:
            write_snapshot(self.path, digest, data)
            connection.execute("INSERT INTO meta VALUES ('base', ?)", (digest,))

    def load_base(self) -> dict[str, Tensor] | None:
        """Reads the head as it stood before any training; None before the first fit."""
        digest = self._ledger.get("base")
        return None if digest is None else read_snapshot(self.path, digest, "the head's start")

    def verify(self) -> Verification:
        """Looks at everything: the chain of events, the journal, tombstones, every snapshot, files that are not known.

        Damaged units are taken out of service; the next fit trains them anew.
        """
        with self._lock.no_fit() as free:
            found = verify(self._ledger, self.path, self._keyring, quiet=free)
        if found.damaged:
            self.take_out(found.damaged)
        return found

    def take_out(self, damaged: Iterable[UnitId]) -> list[UnitId]:
        """Takes damaged units out of service, with all that was built on them, and notes it in the chain of events.

        Args:
            damaged: The units.

        Returns:
            All that were taken out.
        """
        tops = set(damaged)  # found before the transaction: reading snapshots takes long
        with self._ledger.transaction() as connection:
            gone = queue_lineages(self._ledger, self.path, tops)
            if gone:
                append(connection, "damage", None, {"units": [str(unit) for unit in gone]})
        erase_pending(self._ledger, self.path)
        write_journal(self._ledger, self.path)
        return gone

    def take_out_damaged(self) -> list[UnitId]:
        """Reads every snapshot, and takes the units out of service whose snapshot is missing or damaged."""
        return self.take_out(damaged_units(self._ledger, self.path))

    def provenance(self, unit: UnitId | None = None) -> list[dict[str, Any]]:
        """Returns what the units that are alive were made from.

        Args:
            unit: Only this one's.

        Raises:
            RevokedError: It is not alive.
        """
        alive = self.alive()
        if unit is None:
            return [record.provenance for record in alive.values()]
        if unit not in alive:
            raise self._revoked(unit)
        return [alive[unit].provenance]

    def snapshot_size(self, unit: UnitId) -> int:
        """Returns the bytes of a unit's snapshot.

        Args:
            unit: A unit that is alive.
        """
        return snapshot_path(self.path, self.alive()[unit].snapshot).stat().st_size

    def close(self) -> None:
        """Closes the ledger."""
        self._ledger.close()

    def _revoked(self, unit: UnitId) -> RevokedError:
        return RevokedError(f"The store {self.path} has no unit {unit}: it was revoked, or never trained.")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
