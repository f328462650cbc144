"""Building: the operations of a fit on a store."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_s3t.core.floor import PRETRAINED, FloorPart, Task
from lightning_s3t.core.manifest import MethodPart
from lightning_s3t.core.receipts import RequestRecord
from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError, RevokedError, StoreError, UnsupportedError
from lightning_s3t.plan import Partition
from lightning_s3t.store.attempt import Attempt, FinishedUnit
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.generations import merge_generations
from lightning_s3t.store.heads.feature_sums import FeatureRows
from lightning_s3t.store.heads.floor import (
    add_rows,
    check_part,
    complete,
    drop,
    find_stale,
    read_states,
    repair,
    subtract,
)
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone
from lightning_s3t.store.registry import Newcomers, is_registering, register
from lightning_s3t.store.requests.erasure import clean_up, erase_queued, put_ahead, remove_lineages
from lightning_s3t.store.requests.forgetting import Forgetting
from lightning_s3t.store.requests.journal import write_journal
from lightning_s3t.store.settings import normalise
from lightning_s3t.store.snapshots.tensors import encode_snapshot
from lightning_s3t.store.units import parse_unit, read_units

_BASE = "base"  # the name of the attempt that puts the head's initial state


class BuildSession:
    """The operations on a store that only a fit uses. Made by `Store.building`.

    Args:
        backend: The store's backend.
        keyring: Its keys.
        partition: The partition of the subjects.
        forgetting: Carries requests out.
        method: The unlearning method of the store.
    """

    def __init__(
        self, backend: Backend, keyring: Keyring, partition: Partition, forgetting: Forgetting, method: MethodPart
    ) -> None:
        self._method = method
        self._backend = backend
        self._ledger = backend.ledger
        self._keyring = keyring
        self._partition = partition
        self._forgetting = forgetting
        self._attempts: list[Attempt] = []

    def note_options(self, options: Mapping[str, Any]) -> None:
        """Record settings that may change from fit to fit, in the form of `Store.options`.

        Args:
            options: JSON-ready.
        """
        with self._ledger.transaction():
            self._backend.authenticator.note({"options": json.dumps(normalise(options), sort_keys=True)})

    def register(self, subjects: Iterable[str] | Mapping[str, int], newcomers: Newcomers = "retrain") -> int:
        """Note who is in the training data. Forgotten subjects stay forgotten.

        Args:
            subjects: Canonical ids, streamed; or their bands of risk by id, where the partition has bands.
            newcomers: Where subjects who come later belong: "retrain" puts them into the existing slices, "append" into
                a generation of their own.

        Returns:
            Number of subjects who came later; 0 without a registry, which is needed to know.

        Raises:
            DataError: A subject was registered with another band, so units hold it at another place; nothing changes.
        """
        if not is_registering(self._ledger):
            return 0
        bands = subjects.items() if isinstance(subjects, Mapping) else ((subject, 0) for subject in subjects)
        before = self._ledger.head()
        count = register(self._backend, self._keyring, bands, self._partition, newcomers)
        if self._ledger.head() != before:  # scheduled requests have moved
            write_journal(self._backend)
        return count

    def merge_generations(self, into: int) -> None:
        """Put all generations after one into it, as `Store.consolidate`.

        Args:
            into: The generation that stays.

        Raises:
            ConfigurationError: The generation does not exist, or is the last one.
        """
        with self._ledger.transaction():
            merge_generations(self._backend, self._keyring, self._partition, into)
        write_journal(self._backend)
        erase_queued(self._backend)

    def start_unit(self, unit: UnitId, key: str, as_of: int | None = None) -> Attempt:
        """Note that a unit is about to be trained.

        Args:
            unit: The unit.
            key: The digest of everything that may influence it.
            as_of: The request number when its data was chosen; None for now.

        Raises:
            RevokedError: A request since then reaches the unit.
        """
        number = self._ledger.watermark() if as_of is None else as_of
        if self._ledger.reached_since(unit.cells, number):
            raise RevokedError(f"Unit {unit} was revoked before it was trained. The next fit trains it again.")
        with self._ledger.transaction():
            self._ledger.begin(str(unit))
        attempt = Attempt(self._backend, unit, key, number, self._partition.generation_of(unit.shard))
        self._attempts.append(attempt)
        return attempt

    def has_shrunk(self, unit: UnitId) -> bool:
        """Return whether a subject in a unit's training data is forgotten or restricted.

        Args:
            unit: The unit.
        """
        return self._ledger.lacks(unit.cells)

    def replace(
        self,
        attempt: Attempt,
        tensors: Mapping[str, Tensor],
        provenance: Mapping[str, Any],
        score: float | None,
        due: Collection[Tombstone],
        corrections: Collection[Mark] = (),
    ) -> RequestRecord:
        """Carry out requests that waited for this unit, and replace the unit that they reach with it.

        One transaction: whatever happens, either the old unit serves and the requests wait, or the new one serves and
        they are carried out.

        Args:
            attempt: The unit, trained without the forgotten data, or edited.
            tensors: Its tensors.
            provenance: Its origin.
            score: The metric that the script monitors.
            due: The subjects to forget.
            corrections: Marks of subjects whose data was corrected before the unit was trained.

        Raises:
            RevokedError: The unit must not be kept; everything that it wrote is erased.
        """
        try:
            return self._forgetting.replace(due, attempt.finish(tensors, provenance, score), corrections)
        except RevokedError:
            attempt.abandon()
            raise

    def carry_out(
        self, due: Collection[Tombstone], keep: UnitId | None, corrections: Collection[Mark] = ()
    ) -> RequestRecord | None:
        """Carry out waiting requests that do not require training or editing.

        Args:
            due: The subjects to forget.
            keep: A unit that was made without the requested subjects' data, and stays; None for no unit.
            corrections: Marks of subjects whose data was corrected; only if no unit stays.

        Returns:
            The receipt; None if all of them were cancelled in the meantime.
        """
        try:
            return self._forgetting.replace(due, self._kept(keep) if keep is not None else None, corrections)
        except RevokedError:
            return None

    def _kept(self, keep: UnitId) -> FinishedUnit:
        self._backend.authenticator.check_artifacts([str(keep)])
        kept = read_units(self._ledger)[keep]
        snapshot = self._backend.snapshots.get(kept.snapshot, f"unit {kept.unit}")
        known = {file.path: file.evidence for file in self._ledger.files()}
        files = [(file["path"], known[file["path"]]) for file in kept.provenance["files"] if file["path"] in known]
        return FinishedUnit(self._backend, kept, snapshot, lambda: None, files)

    def drop(self, units: Iterable[UnitId], as_of: int | None = None) -> None:
        """Remove and erase stale units, with all units built on them.

        Args:
            units: The units.
            as_of: The request number when they were found to be stale: units that a later request put in their place
                stay. None for now.
        """
        with self._ledger.transaction():
            number = self._ledger.watermark() if as_of is None else as_of
            stale = [unit for unit in units if not self._ledger.reached_since(unit.cells, number)]
            remove_lineages(self._backend, stale)
        erase_queued(self._backend)

    def save_base(self, tensors: Mapping[str, Tensor]) -> None:
        """Store the head's state before any training, once.

        Args:
            tensors: Its tensors, by name.

        Raises:
            StoreError: There is one already.
        """
        if "base" in self._ledger.notes("base"):
            raise StoreError(
                f"The store {self._backend.folder} already has its base. It is written once, before any training."
            )
        digest, data = encode_snapshot(tensors)
        snapshots = self._backend.snapshots
        if snapshots.is_remote:
            with self._ledger.transaction():
                self._ledger.begin(_BASE)
            put_ahead(self._backend, _BASE, digest, data)
        with self._ledger.transaction():
            if not snapshots.is_remote:
                snapshots.put(digest, data)
            self._ledger.own(snapshots.name(digest))
            self._ledger.drop_attempts([_BASE])
            self._backend.authenticator.note({"base": digest})

    def check_floor(self, part: FloorPart) -> None:
        """Compare the wanted settings of the floor with those of the store's floor.

        Args:
            part: The wanted settings.

        Raises:
            ConfigurationError: The ledger keeps no features of rows.
            StoreMismatchError: Naming every setting that differs.
        """
        if not self._ledger.keeps_features:
            raise ConfigurationError(
                f"The store {self._backend.folder} cannot have a closed-form head: its ledger is in a database, whose "
                "log and backups would keep features of rows that a request has removed. Keep the ledger in the "
                "folder (no `ledger`); otherwise leave `floor` out, or choose a method without such a head."
            )
        check_part(read_states(self._backend), part, str(self._backend.folder))

    def find_stale_features(
        self, source: str, subjects: Sequence[str], tags: Sequence[bytes], loaded_at: int | None = None
    ) -> set[str]:
        """Remove a closed-form head's outdated rows, and return the subjects whose rows have to be added.

        Args:
            source: The source of the features: the pretrained network, or the name of a unit.
            subjects: The subject of each row of the data.
            tags: A tag of each row's contents; empty if contents are not compared.
            loaded_at: The position of the newest event when the data was loaded; None for now.
        """
        with self._ledger.transaction():
            repair(self._backend)
            owners = self._keyring.hash_each(subjects)
            stale, missing = find_stale(self._backend, source, zip(owners, tags, strict=True))
            subtract(self._backend, stale, None, [source])
            if not missing or self._method.has_units:  # without units, nothing else could answer
                complete(self._backend, source, not missing, loaded_at)
        erase_queued(self._backend)
        return {subject for subject, owner in zip(subjects, owners, strict=True) if owner in missing}

    def add_features(
        self,
        source: str,
        part: FloorPart,
        task: Task,
        rows: FeatureRows,
        subjects: Sequence[str],
        tags: Sequence[bytes],
        loaded_at: int | None = None,
        as_of: int | None = None,
    ) -> None:
        """Add rows to a closed-form head, all rows of each subject. Subjects who may not be trained on are left out.

        Args:
            source: The source of the features: the pretrained network, or the name of a unit.
            part: The floor's settings.
            task: The kind of its targets.
            rows: The rows.
            subjects: The subject of each row.
            tags: A tag of each row's contents; empty if contents are not compared.
            loaded_at: The position of the newest event when the data was loaded; None for now.
            as_of: The newest request when the unit was loaded; None for now.

        Raises:
            RevokedError: A request has reached the unit.
        """
        with self._ledger.transaction():
            self._check_same(source, as_of)
            owners = self._keyring.hash_each(subjects)
            add_rows(self._backend, source, part, task, rows, owners, tags, loaded_at, self._method.certified)
        erase_queued(self._backend)

    def _check_same(self, source: str, as_of: int | None) -> None:
        """Check that a unit serves as it was: of one name there may be another after a restriction or a release."""
        if source == PRETRAINED:
            return
        number = self._ledger.watermark() if as_of is None else as_of
        if not self._ledger.digests([source]) or self._ledger.reached_since(parse_unit(source).cells, number):
            raise RevokedError(f"A request has reached unit {source} before its closed-form head was made.")

    def complete_head(self, source: str, loaded_at: int | None = None, as_of: int | None = None) -> None:
        """Note that a closed-form head has all rows that it should have.

        Args:
            source: The source of its features.
            loaded_at: The position of the newest event when the data was loaded; None for now.
            as_of: The newest request when the unit was loaded; None for now.

        Raises:
            RevokedError: A request has reached the unit.
            UnsupportedError: A certified head cannot be solved accurately enough.
        """
        with self._ledger.transaction():
            self._check_same(source, as_of)
            state = complete(self._backend, source, True, loaded_at)
            if state is not None and state.certified is not None and state.rows and not state.serves:
                raise UnsupportedError(
                    f"The certified head cannot be solved accurately enough for its noise, {state.certified.noise:g}: "
                    "rounding errors are larger. Nothing was published. Train into a new store with more noise or a "
                    "larger l2."
                )
        erase_queued(self._backend)

    def keep_heads(self, units: Collection[UnitId]) -> None:
        """Take the heads on all other units out, and erase them.

        Args:
            units: The units whose heads are kept.
        """
        with self._ledger.transaction():
            drop(self._backend, read_states(self._backend).keys() - {PRETRAINED, *map(str, units)}, None)
        erase_queued(self._backend)

    def clear_attempts(self) -> None:
        """Clean up after units whose training was interrupted."""
        self.close()
        clean_up(self._backend)

    def close(self) -> None:
        """Release the resources of attempts that have not ended."""
        while self._attempts:
            self._attempts.pop().close()
