"""Every ledger and every place for snapshots that there is: each has to keep the whole contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_s3t.store.backend import open_ledger
from lightning_s3t.store.keys.identities import write_keys
from lightning_s3t.store.ledgers.ledger import Ledger
from lightning_s3t.store.ledgers.sqlite import SqliteLedger
from lightning_s3t.store.snapshots.place import open_place
from lightning_s3t.store.snapshots.snapshots import FOLDER, SnapshotFolder, Snapshots
from tests.object_storage import shared_storage
from tests.postgres_server import shared_server


def sqlite(folder: Path) -> Ledger:
    """A ledger in SQLite, which takes the key for its tags from the folder."""
    if not (folder / "subject.key").exists():
        write_keys(folder, (b"k" * 32,))
    return SqliteLedger(folder, create=True)


def postgres(folder: Path) -> Ledger:
    """A ledger in PostgreSQL, which the folder names."""
    if (folder / "ledger.json").exists():
        return open_ledger(folder)
    write_keys(folder, (b"k" * 32,))
    return open_ledger(folder, create=True, ledger=shared_server().new_address())


def snapshot_folder(folder: Path) -> Snapshots:
    (folder / FOLDER).mkdir(exist_ok=True)
    return SnapshotFolder(folder)


LEDGERS: dict[str, Callable[[Path], Ledger]] = {"sqlite": sqlite, "postgres": postgres}
"""By name, what opens a ledger that belongs to a folder; a second call opens the same again."""

ERASING = ["sqlite"]
"""Those that leave nothing readable of what they remove. A database server's log and backups are out of our reach."""


def shared_folder(folder: Path) -> Snapshots:
    """Snapshots in a folder that machines share."""
    return open_place(folder, str(folder / "shared"), "store-1", create=True)


def bucket(folder: Path) -> Snapshots:
    """Snapshots in a bucket."""
    return open_place(folder, f"s3://{shared_storage().new_bucket()}/churn", "store-1", create=True)


def versioned_bucket(folder: Path) -> Snapshots:
    """Snapshots in a bucket that keeps versions."""
    return open_place(folder, f"s3://{shared_storage().new_bucket('Enabled')}/churn", "store-1", create=True)


def encrypted_folder(folder: Path) -> Snapshots:
    """Encrypted snapshots in the store's folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    return open_place(folder, None, "store-1", create=True, keys=str(folder / "keys"))


def encrypted_bucket(folder: Path) -> Snapshots:
    """Encrypted snapshots in a bucket that keeps versions."""
    place = f"s3://{shared_storage().new_bucket('Enabled')}/churn"
    return open_place(folder, place, "store-1", create=True, keys=str(folder / "keys"))


SNAPSHOTS: dict[str, Callable[[Path], Snapshots]] = {
    "folder": snapshot_folder,
    "shared folder": shared_folder,
    "bucket": bucket,
    "versioned bucket": versioned_bucket,
    "encrypted folder": encrypted_folder,
    "encrypted bucket": encrypted_bucket,
}
"""By name, what opens a place for snapshots that belongs to a folder."""
