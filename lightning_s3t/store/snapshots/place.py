"""The location of a store's snapshots: its folder, a folder that machines share, or a bucket."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.store.ledgers.address import FILE as ADDRESS
from lightning_s3t.store.ledgers.address import parse_address, read_address
from lightning_s3t.store.snapshots.keys import SnapshotKeys
from lightning_s3t.store.snapshots.marker import MARKER, claim, is_free, read_owner
from lightning_s3t.store.snapshots.snapshots import FOLDER, SnapshotFolder, SnapshotPlace, Snapshots

if TYPE_CHECKING:
    from lightning_s3t.store.snapshots.bucket import SnapshotBucket

NOTE = "snapshots"
"""The location as the ledger records it, if it is not the store's folder."""
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w!.*'()-]+)*", re.ASCII)


def parse_place(text: str | Path) -> str:
    """Return the one spelling of a place for snapshots.

    Args:
        text: "s3://bucket/prefix", or the absolute path of a folder.

    Raises:
        ConfigurationError: It is neither a bucket nor an absolute path.

    Example:
        >>> parse_place("s3://models/churn/"), parse_place("/mnt/shared/churn")
        ('s3://models/churn', '/mnt/shared/churn')
        >>> parse_place("ftp://models")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: The location of the snapshots is 'ftp://models'. Expected ...
    """
    place = os.fspath(text)
    if os.path.isabs(place) and "\0" not in place:
        return os.path.normpath(place)
    place = place.rstrip("/")
    if not _BUCKET.fullmatch(place) or {".", ".."} & set(place.split("/")):
        raise ConfigurationError(
            f"The location of the snapshots is {os.fspath(text)!r}. Expected s3://bucket/prefix, or the absolute path "
            "of a folder that all machines share, such as /mnt/shared/churn."
        )
    return place


def check_addresses(store: Path, ledger: str | None, snapshots: str | Path | None) -> str | None:
    """Check the addresses of a store's ledger and snapshots; return the location of the snapshots.

    Args:
        store: The store.
        ledger: The ledger's address; None for the folder, or for the address in it.
        snapshots: The location of the snapshots; None for the folder, or for the location in the ledger.

    Raises:
        ConfigurationError: An address is invalid, or the snapshots would be outside the folder while the ledger is
            inside.
    """
    if ledger is not None:
        parse_address(ledger)
    if snapshots is None:
        return None
    if ledger is None and not (store / ADDRESS).exists():
        raise ConfigurationError(
            "Snapshots can be outside the store's folder only if the ledger is in a database: a copy of a folder "
            "with its ledger would erase what the original serves. Give `ledger` too, or leave `snapshots` out."
        )
    return parse_place(snapshots)


def owner_of(store: Path) -> str:
    """Return the token that identifies a store to the places of its snapshots and keys, and does not fit a copy of it.

    Args:
        store: The store.
    """
    address = read_address(store)
    return address.id if address is not None else f"inode {store.stat().st_ino}"


def open_place(store: Path, place: str | None, owner: str, create: bool = False, keys: str | None = None) -> Snapshots:
    """Open the location of a store's snapshots, and of their keys.

    Args:
        store: The store.
        place: The place; None for the store's folder.
        owner: The token that identifies the store.
        create: Make them, if they are empty.
        keys: The folder of the keys; None if the snapshots are not encrypted.

    Raises:
        ConfigurationError: s3fs or cryptography is not installed.
        StoreError: They cannot be reached, belong to another store, or keep deleted objects.
    """
    found = _open_snapshots(store, place, owner, create)
    return found if keys is None else _encrypted(found, SnapshotKeys(Path(keys), owner, store, create))


def _encrypted(place: SnapshotPlace, keys: SnapshotKeys) -> Snapshots:
    try:
        from lightning_s3t.store.snapshots.encrypted import EncryptedSnapshots
    except ImportError as error:
        raise ConfigurationError(
            f"The snapshots are encrypted, but cryptography cannot be imported ({error}). Install it: "
            'pip install "lightning-s3t[keys]".'
        ) from error
    return EncryptedSnapshots(place, keys)


def _open_snapshots(store: Path, place: str | None, owner: str, create: bool) -> SnapshotPlace:
    if place is None:
        return SnapshotFolder(store)
    if not place.startswith("s3://"):
        return _open_folder(Path(place), owner, create)
    bucket = _bucket(place)
    bucket.check_erasable(probe=create)
    if create:
        bucket.claim(owner)
    bucket.check_owner(owner)
    return bucket


def _open_folder(place: Path, owner: str, create: bool) -> SnapshotPlace:
    marker = place / MARKER
    try:
        for path in (place, marker, place / FOLDER):
            if path.is_symlink():
                raise StoreError(f"{path} is a symbolic link, and links are not followed. Put the folder itself there.")
        if create:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_free(place):
                claim(place, owner)
            elif not marker.exists():
                raise StoreError(
                    f"{place} is not empty. Expected a folder that only this store uses, for its snapshots."
                )
            (place / FOLDER).mkdir(mode=0o700, exist_ok=True)
        found = read_owner(place)
    except FileNotFoundError as error:
        raise StoreError(
            f"The location of the snapshots, {place}, has no {MARKER}. If it is on its own disk, mount the disk; "
            "otherwise restore it from a backup. No unit is discarded because of this."
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"The location of the snapshots, {place}, cannot be used ({error}).") from error
    if found != owner:
        raise StoreError(
            f"The snapshots in {place} belong to another store. Each store needs its own folder for them: use another."
        )
    return SnapshotFolder(place)


def _bucket(place: str) -> SnapshotBucket:
    try:
        from lightning_s3t.store.snapshots.bucket import SnapshotBucket
    except ImportError as error:
        raise ConfigurationError(
            f"The snapshots are at {place}, but s3fs cannot be imported ({error}). Install it: "
            'pip install "lightning-s3t[s3]".'
        ) from error
    return SnapshotBucket(place)
