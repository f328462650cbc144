"""Attempts: a unit from the start of its training to its commit, or to nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import RevokedError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.erasure import drop_attempts, erase_queued, remove
from lightning_s3t.store.files import sha256_of, size_of, spell
from lightning_s3t.store.ledger import Artifact
from lightning_s3t.store.settings import normalise
from lightning_s3t.store.tensors import encode_snapshot
from lightning_s3t.store.units import UnitRecord


class Attempt:
    """A unit that is being trained. Made by `Store.start_unit`.

    Args:
        store: Where the store lies.
        unit: The unit.
        key: The digest of all that may influence it.
        as_of: The request number when its data was chosen.
    """

    def __init__(self, store: Backend, unit: UnitId, key: str, as_of: int) -> None:
        self.unit = unit
        self.key = key
        self._store = store
        self._ledger = store.ledger
        self._as_of = as_of
        self._looked_at = as_of

    def register_file(self, path: str | Path) -> None:
        """Notes, durably, a file that is about to be written, to be erased with the unit.

        Args:
            path: The file. One that an earlier unit wrote belongs to this one from now on.

        Raises:
            RevokedError: The attempt has ended.
        """
        with self._ledger.transaction():
            if not self._is_running():
                raise RevokedError(
                    f"The training of unit {self.unit} has ended, so {path} would not be erased with it. Register a "
                    "file before it is written, while its unit is trained."
                )
            self._ledger.own(spell(path), str(self.unit))

    def check(self) -> None:
        """Looks whether a deletion request has come in between; cheap enough to ask before every batch.

        Raises:
            RevokedError: One reaches the unit, or what it is built on is gone.
        """
        number = self._ledger.watermark()
        if number != self._looked_at:
            self._check_alive()
            self._looked_at = number

    def commit(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any], score: float | None = None
    ) -> UnitRecord:
        """Makes the unit part of the store, whole or not at all.

        Args:
            tensors: What the unit owns.
            provenance: What it was made from, JSON-ready; the files that it wrote are added.
            score: The metric that the script monitors, higher being better; one that is not a number counts as none.

        Raises:
            StoreError: A tensor is of a kind that no snapshot can hold.
            RevokedError: A request since its data was chosen reaches the unit, or its parent is gone. Everything that
                the attempt wrote is erased.
        """
        digest, data = encode_snapshot(tensors)
        if score is not None and math.isnan(score):  # worth nothing, and no database keeps it
            score = None
        files = self._written()  # before the transaction: a deletion request must not wait for gigabytes to be read
        try:
            with self._ledger.transaction():
                self._check_alive()
                self._check_running()
                name, snapshot = str(self.unit), self._store.snapshots.name(digest)
                record = UnitRecord(
                    self.unit, self.key, digest, score, {**normalise(provenance), "files": files, "snapshot": digest}
                )
                text = json.dumps(record.provenance, sort_keys=True)
                remove(self._store, [name], None)  # an earlier one, of other data
                # within the transaction, which an erasure needs too: none can take an equal file away meanwhile
                self._store.snapshots.put(digest, data)
                self._ledger.add(Artifact(name, self.unit.cells, self.key, digest, score, text, self._as_of), snapshot)
        except RevokedError:
            self.abandon()
            raise
        erase_queued(self._store)
        return record

    def abandon(self) -> None:
        """Erases everything that the attempt wrote."""
        with self._ledger.transaction():
            drop_attempts(self._store, [str(self.unit)])
        erase_queued(self._store)

    def _check_alive(self) -> None:
        if self._ledger.reached_since(self.unit.cells, self._as_of):
            raise RevokedError(
                f"Unit {self.unit} was revoked while it was trained, and is not kept. The next fit trains it again."
            )
        parent = self.unit.parent
        if parent and not self._ledger.digests([str(parent)]):
            raise RevokedError(
                f"Unit {parent}, which unit {self.unit} was trained on top of, is gone. The next fit trains both again."
            )

    def _check_running(self) -> None:
        if not self._is_running():
            raise RevokedError(
                f"The training of unit {self.unit} has been cleared away, as what a fit has left that was cut. The "
                "next fit trains it again."
            )

    def _is_running(self) -> bool:
        return bool(self._ledger.attempts(str(self.unit)))

    def _written(self) -> list[dict[str, Any]]:
        found = map(Path, self._ledger.files_of(str(self.unit)))
        return [
            {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(found)
            if size_of(path) is not None and path.is_file()
        ]
