"""Snapshots that are encrypted, each with a key of its own: without the key, no copy of one can be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import override

from lightning_s3t.errors import DamagedError
from lightning_s3t.store.snapshots.keys import SnapshotKeys
from lightning_s3t.store.snapshots.snapshots import NOT_SERVED, SnapshotPlace, Snapshots

_MAGIC = b"s3t-gcm1"
_PREFIX = 7  # bytes of a nonce that differ between two encryptions; 4 number the chunk, and 1 is set in the last
_CHUNK = 1 << 26  # bytes; AESGCM takes less than 2 GiB at once
_TAG = 16  # bytes


class EncryptedSnapshots(Snapshots):
    """Encrypts snapshots before they are kept in a place, and decrypts them after they are read.

    A ledger knows a snapshot by the digest of its unencrypted contents, as without keys, and each read checks that
    digest. To delete a snapshot is to delete its key first.

    Args:
        place: The place.
        keys: The keys.
    """

    def __init__(self, place: SnapshotPlace, keys: SnapshotKeys) -> None:
        self.is_remote = place.is_remote
        self._place = place
        self._keys = keys

    @override
    def name(self, digest: str) -> str:
        return self._place.name(digest)

    @override
    def owned(self, names: Iterable[str]) -> set[str]:
        return self._place.owned(names)

    @override
    def put(self, digest: str, data: bytes) -> None:
        self._place.write(digest, encrypt(self._keys.make(digest), digest, data))

    @override
    def get(self, digest: str, what: str) -> bytes:
        sealed = self._place.read(digest, what)
        key = self._keys.read(digest)
        if key is None:
            raise DamagedError(
                f"The key of the snapshot of {what} is missing: {self._keys.path(digest)}. The snapshot cannot be "
                f"read without it. {NOT_SERVED}"
            )
        try:
            data = decrypt(key, digest, sealed)
        except InvalidTag as error:
            raise DamagedError(
                f"The snapshot of {what} is damaged, or its key is another one's: {self._place.name(digest)} cannot "
                f"be decrypted. {NOT_SERVED}"
            ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedError(
                f"The snapshot of {what} is damaged: {self._place.name(digest)} has other contents. {NOT_SERVED}"
            )
        return data

    @override
    def is_whole(self, digest: str) -> bool:
        try:
            self.get(digest, "a unit")
        except DamagedError:
            return False
        return True

    @override
    def check_place(self) -> None:
        self._place.check_place()
        self._keys.check_any()

    @override
    def names(self) -> set[str]:
        return self._place.names() | {self._place.name(digest) for digest in self._keys.digests()}

    @override
    def size(self, name: str) -> int | None:
        return self._place.size(name)

    @override
    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        return self._place.sizes(names)

    @override
    def delete(self, names: Iterable[str]) -> dict[str, OSError]:
        chosen = self.owned(names)
        # not of half-written snapshots: the whole one may be needed
        by_digest = {digest: name for name in chosen if (digest := self._place.digest_of(name)) is not None}
        failed = {by_digest[digest]: error for digest, error in self._keys.delete(by_digest).items()}
        return self._place.delete(chosen) | failed


def encrypt(key: bytes, digest: str, data: bytes) -> bytes:
    """Encrypt a snapshot by AES-256-GCM, in chunks whose order and number are authenticated too.

    The chunks are those of STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its
    Nonce-Reuse Misuse-Resistance, CRYPTO 2015).

    Args:
        key: 32 bytes.
        digest: The digest of the data, which is authenticated too.
        data: The snapshot.
    """
    cipher, prefix, view = AESGCM(key), os.urandom(_PREFIX), memoryview(data)
    parts = _chunks(prefix, len(data), _CHUNK)
    sealed = (cipher.encrypt(nonce, view[start:end], digest.encode()) for nonce, start, end in parts)
    return b"".join([_MAGIC, prefix, *sealed])


def decrypt(key: bytes, digest: str, sealed: bytes) -> bytes:
    """Return what was encrypted.

    Args:
        key: 32 bytes.
        digest: The digest that it was encrypted with.
        sealed: The output of `encrypt`.

    Raises:
        InvalidTag: It is not the output of `encrypt` with this key and digest.
    """
    head = len(_MAGIC) + _PREFIX
    if not sealed.startswith(_MAGIC) or len(sealed) < head + _TAG:
        raise InvalidTag
    cipher, prefix, view = AESGCM(key), sealed[len(_MAGIC) : head], memoryview(sealed)[head:]
    parts = _chunks(prefix, len(view), _CHUNK + _TAG)
    return b"".join(cipher.decrypt(nonce, view[start:end], digest.encode()) for nonce, start, end in parts)


def _chunks(prefix: bytes, size: int, chunk: int) -> Iterator[tuple[bytes, int, int]]:
    """Return the nonce of each chunk, and where it starts and ends; there is at least one."""
    count = max(-(-size // chunk), 1)
    for number in range(count):
        is_last = bytes([number == count - 1])
        yield prefix + number.to_bytes(4, "big") + is_last, number * chunk, min((number + 1) * chunk, size)
