"""Keys of snapshots: a folder apart from ledger, snapshots and their backups, with one file per key."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.store.disk.files import read_unlinked, sync_folder
from lightning_s3t.store.snapshots.marker import MARKER, claim, is_free, read_owner

NOTE = "keys"
"""The folder of the keys as the ledger records it, if snapshots are encrypted."""
VARIABLE = "LIGHTNING_S3T_KEYS"
_SIZE = 32  # bytes: AES-256
_FILE = re.compile(r"(?:\.\d+\.\d+\.)?([0-9a-f]{64})\.key")  # a key, or a file that becomes one


def parse_keys(text: str | Path) -> str:
    """Return the one spelling of a folder for keys.

    Args:
        text: The absolute path of a folder, or its URL.

    Raises:
        ConfigurationError: It is neither.

    Example:
        >>> parse_keys("file:///mnt/keys/churn/"), parse_keys("/mnt/keys/churn")
        ('/mnt/keys/churn', '/mnt/keys/churn')
        >>> parse_keys("s3://models/churn")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: The location of the keys is 's3://models/churn'. Expected ...
    """
    place = os.fspath(text)
    if place.startswith("file://"):
        parts = urlsplit(place)
        place = unquote(parts.path) if parts.netloc in ("", "localhost") else ""
    if not os.path.isabs(place) or "\0" in place:
        raise ConfigurationError(
            f"The location of the keys is {os.fspath(text)!r}. Expected the absolute path of a folder that is in no "
            "backup of the ledger or of the snapshots, such as /mnt/keys/churn or file:///mnt/keys/churn."
        )
    return os.path.normpath(place)


def check_keys(store: Path, keys: str | Path | None, place: str | None) -> str | None:
    """Check the location of a store's keys, and return it; None without keys.

    Args:
        store: The store.
        keys: The given location.
        place: The location of the snapshots, if they are not in the store's folder.

    Raises:
        ConfigurationError: It is not a folder, or is in one with the store or the snapshots: whoever copies these would
            copy the keys.
    """
    if keys is None:
        return None
    found = Path(parse_keys(keys))
    for other in [store, *([Path(place)] if place is not None and os.path.isabs(place) else [])]:
        if are_nested(found, other):
            raise ConfigurationError(
                f"The keys in {found} would be backed up with {other}, so a deleted key could come back. Expected a "
                "folder that is neither inside nor around it, and in no backup of it."
            )
    return str(found)


def are_nested(one: Path, other: Path) -> bool:
    """Return whether two folders are one, or one of them is inside the other, whatever links lead to them.

    Args:
        one: A folder.
        other: Another.
    """
    first, second = Path(os.path.realpath(one)), Path(os.path.realpath(other))
    return first == second or first in second.parents or second in first.parents


class SnapshotKeys:
    """The keys of a store's snapshots, by the digest of the snapshot.

    A key is never changed, so any number of processes can use a folder without a lock. A deleted key is overwritten
    before its file is removed.

    Args:
        folder: The folder.
        owner: The token that identifies the store.
        store: The store's folder, for messages.
        create: Make it, if it is missing or empty.

    Raises:
        ConfigurationError: The folder is not empty, and has no keys of a store.
        StoreError: It cannot be read, or belongs to another store.
    """

    def __init__(self, folder: Path, owner: str, store: Path, create: bool = False) -> None:
        self._folder = folder
        self._owner = owner
        try:
            if folder.is_symlink():
                raise StoreError(
                    f"{folder} is a symbolic link, and links are not followed. Put the folder itself there."
                )
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if is_free(folder):
                    claim(folder, owner)
                elif not (folder / MARKER).exists():
                    raise ConfigurationError(
                        f"{folder} is not empty. Expected a folder that only this store uses, for the keys of its "
                        "snapshots."
                    )
        except OSError as error:
            raise self._unusable(error) from error
        if self._read_owner() != owner:
            if os.environ.get(VARIABLE) is None or parse_keys(os.environ[VARIABLE]) != str(folder):
                raise StoreError(
                    f"The keys in {folder} belong to another store, or {store} is a copy of that store or was restored "
                    "from a backup. Nothing was changed. A request to a copy would delete keys that the original "
                    "needs. Each store needs its own folder for keys. If the original no longer exists, and you trust "
                    f"this store, set {VARIABLE} to {folder} once."
                )
            self._claim()

    def path(self, digest: str) -> Path:
        """Return the file of a key.

        Args:
            digest: The digest of the snapshot.
        """
        return self._folder / f"{digest}.key"

    def make(self, digest: str) -> bytes:
        """Return the key of a snapshot; make it, durably, if there is none.

        Args:
            digest: The digest of the snapshot.

        Raises:
            StoreError: The folder cannot be read or written.
        """
        found = self.read(digest)
        if found is not None:
            return found
        temporary = self._folder / f".{os.getpid()}.{threading.get_ident()}.{digest}.key"
        path = self.path(digest)
        try:
            _write_new(temporary, secrets.token_bytes(_SIZE))
            for _ in range(2):
                try:
                    os.link(temporary, path)  # fails if another process was faster; renaming would replace its key
                    break
                except FileExistsError:
                    if self.read(digest) is not None:
                        break
                    os.unlink(path)  # the rest of one whose deletion was interrupted
            os.unlink(temporary)
            sync_folder(self._folder)
        except OSError as error:
            raise self._unusable(error) from error
        found = self.read(digest)
        if found is None:
            raise StoreError(f"The key {path} was deleted while it was made. Try again.")
        return found

    def read(self, digest: str) -> bytes | None:
        """Return the key of a snapshot; None if it was deleted or never made.

        Args:
            digest: The digest of the snapshot.

        Raises:
            StoreError: The folder cannot be read, or is not mounted.
        """
        try:
            with read_unlinked(self.path(digest)) as file:
                data = file.read(_SIZE + 1)
        except FileNotFoundError:
            self.check()
            return None
        except OSError as error:
            raise self._unusable(error) from error
        return data if len(data) == _SIZE and any(data) else None

    def digests(self) -> set[str]:
        """Return the digests of the snapshots that have a key, even one that was not finished."""
        self.check()
        try:
            return {found[1] for name in os.listdir(self._folder) if (found := _FILE.fullmatch(name))}
        except OSError as error:
            raise self._unusable(error) from error

    def delete(self, digests: Iterable[str]) -> dict[str, OSError]:
        """Delete keys durably; return those that may still be readable, with the reason.

        Args:
            digests: The digests of the snapshots.
        """
        wanted = set(digests)
        try:
            self.check()
        except StoreError as error:
            return dict.fromkeys(wanted, OSError(errno.EIO, str(error)))
        failed = dict[str, OSError]()
        unfinished = set[str]()
        for digest in wanted:
            try:
                if _overwrite_and_unlink(self.path(digest)):
                    unfinished.add(digest)
            except FileNotFoundError:
                unfinished.add(digest)
            except OSError as error:
                failed[digest] = error
        try:
            if unfinished:
                self._delete_unfinished(unfinished)
            sync_folder(self._folder)
        except OSError as error:
            return failed | dict.fromkeys(wanted - failed.keys(), error)
        return failed

    def check(self) -> None:
        """Raise an error if the folder is not the one with the keys: its disk is not mounted, for example.

        Raises:
            StoreError: It is not.
        """
        if self._read_owner() != self._owner:
            raise StoreError(f"The keys in {self._folder} now belong to another store. Restore the folder.")

    def check_any(self) -> None:
        """Raise an error if the folder, which should hold keys, has none.

        Raises:
            StoreError: It has none.
        """
        if not self.digests():
            raise StoreError(
                f"The folder of the keys, {self._folder}, has no keys. If they were lost, no snapshot can be read: "
                "restore the folder. No unit is discarded because of this."
            )

    def _delete_unfinished(self, digests: Collection[str]) -> None:
        """Remove files of processes that were killed while they made a key."""
        for name in os.listdir(self._folder):
            found = _FILE.fullmatch(name)
            if found and found[1] in digests:
                try:
                    _overwrite_and_unlink(self._folder / name)
                except FileNotFoundError:
                    continue

    def _claim(self) -> None:
        try:
            claim(self._folder, self._owner)
        except OSError as error:
            raise self._unusable(error) from error

    def _read_owner(self) -> str | None:
        try:
            return read_owner(self._folder)
        except FileNotFoundError as error:
            raise StoreError(
                f"The folder of the keys, {self._folder}, is missing or has no {MARKER}. If it is on its own disk, "
                "mount the disk; otherwise restore the folder. Without the keys no snapshot can be read. No unit is "
                "discarded because of this."
            ) from error
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"The keys in {self._folder} cannot be read or written ({error}). Remove the cause, and try again. No unit "
            "is discarded because of this."
        )


def _write_new(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite_and_unlink(path: Path) -> bool:
    """Overwrite and remove a file; return whether it has another name, as when a process was killed in `make`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", os.fspath(path))
        os.write(descriptor, bytes(_SIZE))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.unlink(path)
    return found.st_nlink > 1
