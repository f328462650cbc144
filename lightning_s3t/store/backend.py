"""Where a store lies: its folder, its ledger and its snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store.authentication import Authenticator
from lightning_s3t.store.ledger import Ledger
from lightning_s3t.store.ledger_address import LedgerAddress, make_address, read_address
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
    def of(cls, folder: Path, create: bool = False, ledger: str | None = None) -> Backend:
        """Open what lies in one folder, and the ledger that it names.

        Args:
            folder: The store.
            create: Make the ledger if there is none.
            ledger: Where to make it, if not in the folder.

        Raises:
            ConfigurationError: The ledger's address is none, or psycopg is not installed.
            StoreError: There is none, or it is not a ledger of this format.
        """
        return cls(folder, open_ledger(folder, create, ledger), SnapshotFolder(folder))


def open_ledger(folder: Path, create: bool = False, ledger: str | None = None) -> Ledger:
    """Open the ledger of a store, wherever it lies.

    Args:
        folder: The store.
        create: Make it if there is none.
        ledger: Where to make it; None for the folder.

    Raises:
        ConfigurationError: The address is none, or psycopg is not installed.
        StoreError: There is none, or it is not a ledger of this format.
    """
    address = make_address(folder, ledger) if create else read_address(folder)
    return SqliteLedger(folder, create) if address is None else _open_postgres(folder, address, create)


def _open_postgres(folder: Path, address: LedgerAddress, create: bool) -> Ledger:
    try:
        import psycopg
    except ImportError as error:  # or libpq, which it needs, is missing
        raise ConfigurationError(
            f"The ledger of the store {folder} is in PostgreSQL, and psycopg cannot be imported ({error}). Install it: "
            'pip install "lightning-s3t[postgres]".'
        ) from error
    del psycopg
    from lightning_s3t.store.postgres_ledger import PostgresLedger

    return PostgresLedger(folder, address, create)
