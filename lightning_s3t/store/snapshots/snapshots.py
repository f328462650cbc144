"""Snapshots: the tensors of units as bytes, each under its digest; a protocol, so that they can be stored anywhere."""

from __future__ import annotations

import errno
import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from lightning_s3t.errors import DamagedError, StoreError
from lightning_s3t.store.disk.files import (
    read_unlinked,
    sha256_of,
    size_of,
    sizes_of,
    unlink_all,
    write_atomically,
)

FOLDER = "snapshots"
NOT_SERVED = "It is not served. `s3t store verify` removes the unit, and the next fit trains it again."
_DIGEST = re.compile("[0-9a-f]{64}")
# a snapshot, or a temporary file of `write_atomically`
_NAME = r"(?:[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\.\d+\.tmp)"
_WHOLE = re.compile(rf"{FOLDER}/([0-9a-f]{{64}})\.safetensors")
_OWNED = re.compile(f"{FOLDER}/{_NAME}")


class Snapshots(Protocol):
    """The operations that a store needs from a location for snapshots.

    A snapshot exists completely or not at all, whatever happens, and equal bytes are stored once. A ledger knows a
    snapshot by its name.
    """

    is_remote: bool
    """Whether access goes over a network: then nothing is put or deleted while other writers of the ledger wait."""

    def name(self, digest: str) -> str:
        """Return the name that a ledger knows a snapshot by."""

    def owned(self, names: Iterable[str]) -> set[str]:
        """Return the names that are valid for snapshots; other files are never removed."""

    def put(self, digest: str, data: bytes) -> None:
        """Keep a snapshot, durably; raise `StoreError` if that cannot be done."""

    def get(self, digest: str, what: str) -> bytes:
        """Return a snapshot, after checking its digest.

        Raise `DamagedError`, with the owner, if it is missing or corrupted; `StoreError` if the location cannot be read
        now.
        """

    def is_whole(self, digest: str) -> bool:
        """Return whether a snapshot is intact; raise `StoreError` if the location cannot be read now."""

    def check_place(self) -> None:
        """Raise `StoreError` if the place, which should hold snapshots, is missing or empty."""

    def names(self) -> set[str]:
        """Return the names of all existing snapshots, including half-written ones."""

    def size(self, name: str) -> int | None:
        """Return the size in bytes of the snapshot with a name; None if it does not exist."""

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return the same for several names; None too of one that cannot be looked at now."""

    def delete(self, names: Iterable[str]) -> dict[str, OSError]:
        """Remove snapshots durably; return those that still exist, with the reason."""


class SnapshotNames(Snapshots):
    """The names of snapshots: their digests, as safetensors files in one folder."""

    @override
    def name(self, digest: str) -> str:
        return f"{FOLDER}/{digest}.safetensors"

    @override
    def owned(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if _OWNED.fullmatch(name)}

    @staticmethod
    def digest_of(name: str) -> str | None:
        """Return the digest of a snapshot that exists under a name; None for half-written ones and other files.

        Args:
            name: The name.
        """
        found = _WHOLE.fullmatch(name)
        return found[1] if found else None

    @staticmethod
    def is_digest(digest: str) -> bool:
        """Return whether a text can be a digest, and not a path, for example.

        Args:
            digest: The text.
        """
        return bool(_DIGEST.fullmatch(digest))

    def check_digest(self, digest: str, what: str) -> None:
        """Raise an error for an invalid digest: the ledger was changed.

        Args:
            digest: The text.
            what: The owner of the snapshot, for the message.

        Raises:
            DamagedError: It is not.
        """
        if not self.is_digest(digest):
            raise DamagedError(f"The snapshot of {what} has {digest[:80]!r} instead of a digest. {NOT_SERVED}")


class SnapshotPlace(SnapshotNames):
    """A place that can also keep other bytes under the name of a snapshot, such as its encrypted contents."""

    @abstractmethod
    def write(self, digest: str, data: bytes) -> None:
        """Keep bytes under the name of a snapshot, durably, in place of any others.

        Args:
            digest: The snapshot's digest.
            data: The bytes.

        Raises:
            StoreError: They could not be written.
        """

    @abstractmethod
    def read(self, digest: str, what: str) -> bytes:
        """Return the bytes under the name of a snapshot, unchecked.

        Args:
            digest: The snapshot's digest.
            what: The owner of the snapshot, for the message.

        Raises:
            DamagedError: There are none.
            StoreError: The place cannot be read now.
        """

    @override
    def get(self, digest: str, what: str) -> bytes:
        data = self.read(digest, what)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise DamagedError(
                f"The snapshot of {what} is damaged: {self.location(digest)} has SHA-256 {found}. {NOT_SERVED}"
            )
        return data

    @abstractmethod
    def location(self, digest: str) -> str:
        """Return where a snapshot is, for messages.

        Args:
            digest: The snapshot's digest.
        """


class SnapshotFolder(SnapshotPlace):
    """Snapshots as safetensors files in a folder.

    Args:
        place: The folder that contains it: the store, or a folder that machines share.
    """

    is_remote = False

    def __init__(self, place: Path) -> None:
        self._store = place
        self._folder = place / FOLDER

    @override
    def put(self, digest: str, data: bytes) -> None:
        self.write(digest, data)

    @override
    def write(self, digest: str, data: bytes) -> None:
        self._check_folder()
        path = self._path(digest)
        try:
            write_atomically(path, data)
        except OSError as error:
            raise StoreError(f"The snapshot {path} could not be written ({error}).") from error

    @override
    def read(self, digest: str, what: str) -> bytes:
        self.check_digest(digest, what)
        path = self._path(digest)
        try:
            with read_unlinked(path) as file:
                return file.read()
        except FileNotFoundError as error:
            raise DamagedError(f"The snapshot of {what} is missing: {path}. {NOT_SERVED}") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DamagedError(f"The snapshot of {what} is a symbolic link: {path}. {NOT_SERVED}") from error
            raise StoreError(
                f"The snapshot of {what} cannot be read: {path} ({error.strerror}). Remove the cause, and try again."
            ) from error

    @override
    def location(self, digest: str) -> str:
        return str(self._path(digest))

    @override
    def is_whole(self, digest: str) -> bool:
        path = self._path(digest)
        if not self.is_digest(digest):
            return False
        try:
            return sha256_of(path) == digest
        except FileNotFoundError:
            if self._folder.is_dir():
                return False
            raise self._elsewhere("missing") from None
        except OSError as error:  # the disk may be readable later: no unit is discarded
            if error.errno == errno.ELOOP:
                return False
            raise StoreError(
                f"The snapshot {path} cannot be read: {error.strerror}. Remove the cause, and try again."
            ) from error

    @override
    def check_place(self) -> None:
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            raise self._elsewhere("empty")

    @override
    def names(self) -> set[str]:
        self._check_folder()
        return self.owned(f"{FOLDER}/{path.name}" for path in self._folder.glob("*"))

    @override
    def size(self, name: str) -> int | None:
        return size_of(f"{self._store}/{name}")

    @override
    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        paths = {f"{self._store}/{name}": name for name in names}
        return {paths[path]: size for path, size in sizes_of(paths).items()}

    @override
    def delete(self, names: Iterable[str]) -> dict[str, OSError]:
        self._check_folder()
        paths = {f"{self._store}/{name}": name for name in self.owned(names)}
        return {paths[path]: error for path, error in unlink_all(paths).items()}

    def _path(self, digest: str) -> Path:
        return self._store / self.name(digest)

    def _check_folder(self) -> None:
        if self._folder.is_symlink():  # placed there while the store is open; its target does not belong to the store
            raise StoreError(
                f"{self._folder} is a symbolic link, and links are not followed. Put the folder itself there, or "
                "mount its disk there."
            )

    def _elsewhere(self, what: str) -> StoreError:
        return StoreError(
            f"The folder {self._folder} is {what}. If it is on its own disk, mount the disk; otherwise restore the "
            "folder from a backup. No unit is discarded because of this."
        )
