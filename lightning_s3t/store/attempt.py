"""Attempts: a unit from the start of its training to its commit, or to nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.store.erasure import attempt_name, drop_attempt, erase_pending, queue_units
from lightning_s3t.store.files import sha256_of, size_of
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.record import UnitRecord
from lightning_s3t.store.settings import normalise
from lightning_s3t.store.snapshots import encode_snapshot, write_snapshot
from lightning_s3t.store.units import newest_request, reached_since


class Attempt:
    """A unit that is being trained. Made by `Store.start_unit`.

    Args:
        ledger: The store's ledger.
        store: Its folder.
        unit: The unit.
        key: The digest of all that may influence it.
        as_of: The request number when its data was chosen.
    """

    def __init__(self, ledger: Ledger, store: Path, unit: UnitId, key: str, as_of: int) -> None:
        self.unit = unit
        self.key = key
        self._ledger = ledger
        self._store = store
        self._as_of = as_of
        self._looked_at = as_of
        self._name = attempt_name(str(unit))

    def register_file(self, path: str | Path) -> None:
        """Notes, durably, a file that is about to be written, to be erased with the unit.

        Args:
            path: The file. One that an earlier unit wrote belongs to this one from now on.

        Raises:
            RevokedError: The attempt has ended.
        """
        # one spelling for one file; a link stays one, since erasing must not follow it
        folder, name = os.path.split(os.path.abspath(path))
        row = (os.path.join(os.path.realpath(folder), name), self._name)
        with self._ledger.transaction() as connection:
            if not connection.execute("SELECT 1 FROM attempts WHERE unit = ?", (str(self.unit),)).fetchone():
                raise RevokedError(
                    f"The training of unit {self.unit} has ended, so nobody would erase {path} with it. Register a "
                    "file before it is written, while its unit is trained."
                )
            connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", row)

    def check(self) -> None:
        """Looks whether a deletion request has come in between; cheap enough to ask before every batch.

        Raises:
            RevokedError: One reaches the unit, or what it is built on is gone.
        """
        number = newest_request(self._ledger)
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
            with self._ledger.transaction() as connection:
                self._check_alive()
                self._check_running()
                record = UnitRecord(
                    self.unit,
                    self.key,
                    digest,
                    score,
                    {**normalise(provenance), "files": files, "snapshot": digest},
                )
                queue_units(connection, self._store, [self.unit], None)
                # within the transaction, which an erasure needs too: none can take an equal file away meanwhile
                write_snapshot(self._store, digest, data)
                connection.execute(
                    "INSERT INTO units VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        str(self.unit),
                        self.key,
                        digest,
                        score,
                        json.dumps(record.provenance, sort_keys=True),
                        self._as_of,
                    ),
                )
                connection.execute("UPDATE files SET unit = ? WHERE unit = ?", (str(self.unit), self._name))
                connection.execute("DELETE FROM attempts WHERE unit = ?", (str(self.unit),))
        except RevokedError:
            self.abandon()
            raise
        erase_pending(self._ledger, self._store)
        return record

    def abandon(self) -> None:
        """Erases everything that the attempt wrote."""
        with self._ledger.transaction() as connection:
            drop_attempt(connection, self._store, str(self.unit))
        erase_pending(self._ledger, self._store)
        self._ledger.truncate_log()  # its key, which an attempt without files leaves there

    def _check_alive(self) -> None:
        if reached_since(self._ledger, self.unit, self._as_of):
            raise RevokedError(
                f"Unit {self.unit} was revoked while it was trained, and is not kept. The next fit trains it anew."
            )
        parent = self.unit.parent
        connection = self._ledger.connection
        if parent and not connection.execute("SELECT 1 FROM units WHERE unit = ?", (str(parent),)).fetchone():
            raise RevokedError(
                f"Unit {parent}, which unit {self.unit} was trained on top of, is gone. The next fit trains both anew."
            )

    def _check_running(self) -> None:
        row = self._ledger.connection.execute("SELECT 1 FROM attempts WHERE unit = ?", (str(self.unit),)).fetchone()
        if row is None:
            raise RevokedError(
                f"The training of unit {self.unit} has been cleared away, as what a fit has left that was cut. The "
                "next fit trains it anew."
            )

    def _written(self) -> list[dict[str, Any]]:
        rows = self._ledger.connection.execute("SELECT path FROM files WHERE unit = ?", (self._name,))
        found = [Path(row[0]) for row in rows]
        return [
            {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(found)
            if size_of(path) is not None and path.is_file()
        ]
