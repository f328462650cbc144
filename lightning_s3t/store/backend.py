"""The backend of a store: its folder, its ledger and its snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lightning_s3t.errors import ConfigurationError, StoreError, StoreMismatchError
from lightning_s3t.store.heads.feature_sums import FeatureSums
from lightning_s3t.store.keys.authentication import Authenticator
from lightning_s3t.store.ledgers.address import LedgerAddress, check_not_moved, make_address, read_address
from lightning_s3t.store.ledgers.ledger import Ledger
from lightning_s3t.store.ledgers.sqlite import SqliteLedger
from lightning_s3t.store.snapshots.keys import NOTE as KEYS
from lightning_s3t.store.snapshots.place import NOTE as PLACE
from lightning_s3t.store.snapshots.place import open_place, owner_of
from lightning_s3t.store.snapshots.snapshots import Snapshots


@dataclass(frozen=True)
class Backend:
    """The backend of a store.

    Attributes:
        folder: The folder with keys, journal and locks.
        ledger: The ledger.
        snapshots: The snapshots.
        kept_sums: The floor's sums as this process has last written them, with their digest, so that the next request
            need not read them.
        unsure: The names of sums and heads that this process has written in transactions. Those of one that failed
            belong to no record, and the next erasure removes them.
    """

    folder: Path
    ledger: Ledger
    snapshots: Snapshots
    kept_sums: dict[str, tuple[str, FeatureSums]] = field(default_factory=dict, compare=False)
    unsure: set[str] = field(default_factory=set, compare=False)

    @cached_property
    def authenticator(self) -> Authenticator:
        """Creates and checks the codes that only the holder of the store's key can write."""
        return Authenticator(self.folder, self.ledger)

    @classmethod
    def of(
        cls,
        folder: Path,
        create: bool = False,
        ledger: str | None = None,
        snapshots: str | None = None,
        keys: str | None = None,
    ) -> Backend:
        """Open a folder, the ledger that it names, and the snapshots and keys that the ledger names.

        Args:
            folder: The store.
            create: Create the ledger if it does not exist.
            ledger: Where to create it, if not in the folder.
            snapshots: Where to keep the snapshots, if not in the folder.
            keys: Where to keep their keys; None for no encryption, or for where they are.

        Raises:
            ConfigurationError: An address is invalid, or a package for it is not installed.
            StoreMismatchError: The store's snapshots or keys are elsewhere.
            StoreError: The ledger is missing or has another format; or the snapshots or their keys cannot be reached,
                or a request could not erase them.
        """
        opened = open_ledger(folder, create, ledger)
        try:
            return cls(folder, opened, _open_snapshots(folder, opened, snapshots, keys))
        except BaseException:
            opened.close()
            raise


def open_ledger(folder: Path, create: bool = False, ledger: str | None = None) -> Ledger:
    """Open the ledger of a store, wherever it is.

    Args:
        folder: The store.
        create: Create it if it does not exist.
        ledger: Where to create it; None for the folder.

    Raises:
        ConfigurationError: The address is none, or psycopg is not installed.
        MovedError: The store was retired.
        StoreError: There is none, or it is not a ledger of this format.
    """
    check_not_moved(folder)
    address = make_address(folder, ledger) if create else read_address(folder)
    return SqliteLedger(folder, create) if address is None else _open_postgres(folder, address, create)


def _open_snapshots(folder: Path, ledger: Ledger, given: str | None, given_keys: str | None) -> Snapshots:
    notes = ledger.notes("settings", PLACE, KEYS)
    is_made, place, keys = "settings" in notes, notes.get(PLACE) or None, notes.get(KEYS) or None
    if is_made and given_keys not in (None, keys):
        raise StoreMismatchError(
            f"The keys of the store {folder} are in {keys}, not in {given_keys}. Leave the argument out: the ledger "
            "records where they are."
            if keys is not None
            else f"The snapshots of the store {folder} are not encrypted, and the argument asks for keys in "
            f"{given_keys}. Leave it out, or copy the store to one with keys (s3t copy --keys)."
        )
    if is_made and given not in (None, place):
        raise StoreMismatchError(
            f"The snapshots of the store {folder} are in {place or 'its folder'}, not in {given}. Leave the argument "
            "out: the ledger records where they are."
        )
    if not is_made:
        place, keys = given, given_keys
    if place is not None and read_address(folder) is None:
        raise StoreError(
            f"The store {folder} has its ledger in its folder, but the ledger names {place} for the snapshots: it was "
            "changed. Nothing is served. Restore the ledger from a backup."
        )
    return open_place(folder, place, owner_of(folder), not is_made, keys)


def _open_postgres(folder: Path, address: LedgerAddress, create: bool) -> Ledger:
    try:
        import psycopg
    except ImportError as error:  # or libpq, which it needs, is missing
        raise ConfigurationError(
            f"The ledger of the store {folder} is in PostgreSQL, but psycopg cannot be imported ({error}). Install it: "
            'pip install "lightning-s3t[postgres]".'
        ) from error
    del psycopg
    from lightning_s3t.store.ledgers.postgres import PostgresLedger

    return PostgresLedger(folder, address, create)
