"""Where a store lies: its folder, its ledger and its snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lightning_s3t.store.authentication import Authenticator
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.snapshots import SnapshotFolder, Snapshots
from lightning_s3t.store.sqlite_ledger import SqliteLedger


@dataclass(frozen=True)
class Backend:
    """Where a store lies.

    Attributes:
        folder: What lies beside ledger and snapshots: keys, journal and locks.
        ledger: The ledger.
        snapshots: The snapshots.
    """

    folder: Path
    ledger: Ledger
    snapshots: Snapshots

    @cached_property
    def authenticator(self) -> Authenticator:
        """Makes and checks what only the holder of the store's key can write."""
        return Authenticator(self.folder, self.ledger)

    @classmethod
    def of(cls, folder: Path, create: bool = False) -> Backend:
        """Open what lies in one folder.

        Args:
            folder: The store.
            create: Make the ledger if there is none.

        Raises:
            StoreError: There is none, or it is not a ledger of this format.
        """
        return cls(folder, SqliteLedger(folder, create), SnapshotFolder(folder))
