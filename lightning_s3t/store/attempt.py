"""Attempts: a unit from the start of its training to its commit, or to nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import RevokedError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.disk.files import spell
from lightning_s3t.store.disk.scratch import Scratch
from lightning_s3t.store.generations import close_generation
from lightning_s3t.store.ledgers.ledger import Artifact
from lightning_s3t.store.registered_files import RegisteredFiles, digest_of
from lightning_s3t.store.requests.erasure import drop_attempts, erase_queued, put_ahead, remove
from lightning_s3t.store.settings import normalise
from lightning_s3t.store.snapshots.tensors import encode_snapshot
from lightning_s3t.store.units import UnitRecord


class Attempt:
    """A unit that is being trained. Made by `BuildSession.start_unit`.

    Args:
        store: The store's backend.
        unit: The unit.
        key: The digest of everything that may influence it.
        as_of: The request number when its data was chosen.
        generation: The newest generation in its training data.
    """

    def __init__(self, store: Backend, unit: UnitId, key: str, as_of: int, generation: int = 0) -> None:
        self.unit = unit
        self.key = key
        self._generation = generation
        self._store = store
        self._ledger = store.ledger
        self._as_of = as_of
        self._looked_at = as_of
        self._registered = RegisteredFiles(store.folder)
        self._scratch: Scratch | None = None

    @property
    def scratch(self) -> Path:
        """A folder for temporary files while the unit is trained; it is removed when the attempt ends."""
        if self._scratch is None:
            self._scratch = Scratch(self._store.folder)
        return self._scratch.path

    def close(self) -> None:
        """Release the folder for temporary files."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def register_file(self, path: str | Path) -> None:
        """Note, durably, a file that is about to be written, to be erased with the unit.

        Args:
            path: The file. One that an earlier unit wrote belongs to this one from now on.

        Raises:
            RevokedError: The attempt has ended.
        """
        with self._ledger.transaction():
            if not self._is_running():
                raise RevokedError(
                    f"The training of unit {self.unit} has ended, so {path} would not be erased with it. Register a "
                    "file before writing it, while its unit is trained."
                )
            spelled = spell(path)
            is_ours = bool(self._ledger.needed([spelled]))
            self._ledger.own(spelled, str(self.unit), self._registered.before(spelled, is_ours))

    def check(self) -> None:
        """Check whether a deletion request has arrived; cheap enough to call before every batch.

        Raises:
            RevokedError: A request reaches the unit, or its parent no longer exists.
        """
        number = self._ledger.watermark()
        if number != self._looked_at:
            self._check_alive()
            self._looked_at = number

    def commit(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any], score: float | None = None
    ) -> UnitRecord:
        """Add the unit to the store, completely or not at all.

        Args:
            tensors: The unit's tensors.
            provenance: Its origin, JSON-ready; the files that it wrote are added.
            score: The metric that the script monitors, higher being better; one that is not a number counts as none.

        Raises:
            StoreError: A tensor is of a kind that no snapshot can hold.
            RevokedError: A request since its data was chosen reaches the unit, or its parent no longer exists.
                Everything that the attempt wrote is erased.
        """
        try:
            finished = self.finish(tensors, provenance, score)
            with self._ledger.transaction():
                finished.check()
                remove(self._store, [str(self.unit)], None)  # an earlier one, of other data
                finished.put(self._as_of)
                self._store.authenticator.seal([str(self.unit)])
                close_generation(self._store, self._generation)
        except RevokedError:
            self.abandon()
            raise
        erase_queued(self._store)
        return finished.record

    def finish(self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any], score: float | None) -> FinishedUnit:
        """Prepare everything that a transaction needs to add the unit to the store.

        Args:
            tensors: The unit's tensors.
            provenance: Its origin, JSON-ready; the files that it wrote are added.
            score: The metric that the script monitors; one that is not a number counts as none.

        Raises:
            StoreError: A tensor is of a kind that no snapshot can hold.
            RevokedError: The unit must not be kept, and its snapshot would have been written before the transaction.
        """
        self.close()
        digest, data = encode_snapshot(tensors)
        if score is not None and math.isnan(score):  # worth nothing, and no database keeps it
            score = None
        # before the transaction: a deletion request must not wait for gigabytes to be read
        written = self._written()
        files = [about for _, _, about in written if about is not None]
        record = UnitRecord(
            self.unit, self.key, digest, score, {**normalise(provenance), "files": files, "snapshot": digest}
        )
        owned = [(path, evidence) for path, evidence, _ in written]
        if self._store.snapshots.is_remote:
            put_ahead(self._store, str(self.unit), digest, data, self._check)
        return FinishedUnit(self._store, record, data, self._check, owned)

    def abandon(self) -> None:
        """Erase everything that the attempt wrote."""
        self.close()
        with self._ledger.transaction():
            drop_attempts(self._store, [str(self.unit)])
        erase_queued(self._store)

    def _check(self) -> None:
        self._check_alive()
        self._check_running()

    def _check_alive(self) -> None:
        if self._ledger.reached_since(self.unit.cells, self._as_of):
            raise RevokedError(
                f"Unit {self.unit} was revoked while it was trained, and is discarded. The next fit trains it again."
            )
        parent = self.unit.parent
        if parent and not self._ledger.digests([str(parent)]):
            raise RevokedError(
                f"Unit {parent}, which unit {self.unit} was trained on top of, no longer exists. The next fit trains "
                "both again."
            )

    def _check_running(self) -> None:
        if not self._is_running():
            raise RevokedError(
                f"The training of unit {self.unit} was cleaned up as the remains of an interrupted fit. The next fit "
                "trains it again."
            )

    def _is_running(self) -> bool:
        return bool(self._ledger.attempts(str(self.unit)))

    def _written(self) -> list[tuple[str, str, dict[str, Any] | None]]:
        """Return the registered files: path, evidence and, if the file exists, its entry in the provenance."""
        found: list[tuple[str, str, dict[str, Any] | None]] = []
        for path in sorted(file.path for file in self._ledger.files_of(str(self.unit))):
            digest = digest_of(path)
            evidence = self._registered.after(path, digest or "")
            about = None
            if digest is not None and os.path.isfile(path):
                content = digest_of(os.path.realpath(path)) if os.path.islink(path) else digest
                about = {"path": path, "sha256": content, "bytes": os.path.getsize(path)}
            found.append((path, evidence, about))
        return found


class FinishedUnit:
    """A unit that is trained and not yet part of the store. Made by `Attempt.finish`.

    Args:
        store: The store's backend.
        record: Its record.
        snapshot: Its tensors, encoded.
        check: Raises a RevokedError if the unit must not be kept.
        files: Its registered files, with the evidence of each.

    Attributes:
        record: Its record.
    """

    def __init__(
        self,
        store: Backend,
        record: UnitRecord,
        snapshot: bytes,
        check: Callable[[], None],
        files: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.record = record
        self.check = check
        self._store = store
        self._snapshot = snapshot
        self._files = tuple(files)

    def put(self, as_of: int) -> UnitId:
        """Add the unit to the store, within a transaction, after an earlier one with its name was removed.

        Args:
            as_of: The newest request when its data was chosen.
        """
        record, store = self.record, self._store
        if not store.snapshots.is_remote:
            # within the transaction, which an erasure needs too, so no equal file can be removed at the same time
            store.snapshots.put(record.snapshot, self._snapshot)
        text = json.dumps(record.provenance, sort_keys=True)
        for path, evidence in self._files:
            store.ledger.own(path, str(record.unit), evidence)
        artifact = Artifact(str(record.unit), record.unit.cells, record.key, record.snapshot, record.score, text, as_of)
        store.ledger.add(artifact, store.snapshots.name(record.snapshot))
        return record.unit
