"""Identities: subjects as keyed hashes, since an id may itself be personal data."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.store.disk.files import read_unlinked, write_atomically

KEY_FILE = "subject.key"
KEY_VARIABLE = "LIGHTNING_S3T_KEY"
_KEY_BYTES = 32
_MOST = 1 << 20  # more than this is not a key: a stranger's file may fill the memory
_HASH_BYTES = 16  # two of 10 million subjects share a hash with a probability below 10**-24

Keys = tuple[bytes, ...]


def read_or_make_keys(folder: Path, key: bytes | None = None) -> Keys:
    """Return a store's keys; create one if there is none.

    Args:
        folder: The store. The key is in the folder, readable only by its owner, unless the environment provides it.
        key: The key of a new store; None to draw one.

    Raises:
        StoreError: The key is damaged.
    """
    if not _has_keys(folder):
        write_keys(folder, (key if key is not None else new_key(),))
    return read_keys(folder)


def first_key(folder: Path) -> bytes:
    """Return the first key of a store, which never changes; of one that is not there yet, the key to make it with.

    Args:
        folder: The store.

    Raises:
        StoreError: The key is damaged.
    """
    return read_keys(folder)[0] if _has_keys(folder) else new_key()


def check_key(key: object) -> None:
    """Raise an error for an invalid key.

    Args:
        key: The given key.

    Raises:
        ConfigurationError: The key is not 32 bytes.
    """
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        raise ConfigurationError(
            f"The key of a store is not {_KEY_BYTES} bytes ({type(key).__name__}). Expected a key such as "
            f"secrets.token_bytes({_KEY_BYTES})."
        )


def new_key() -> bytes:
    """Return a key drawn at random."""
    return os.urandom(_KEY_BYTES)


def partition_secret(key: bytes) -> bytes:
    """Return the secret of a store's partition.

    It is made from the first key, which is kept for as long as the store is: no place can change.

    Args:
        key: The store's first key.
    """
    return hashlib.blake2b(key=key, digest_size=32, person=b"s3t-places").digest()


def _has_keys(folder: Path) -> bool:
    return KEY_VARIABLE in os.environ or (folder / KEY_FILE).exists()


def read_keys(folder: Path) -> Keys:
    """Return the keys of a store that exists: the first one, and one more for each rotation.

    Args:
        folder: The store.

    Raises:
        StoreError: There is none, or it is damaged.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given is not None:
        return _parse(given)
    path = folder / KEY_FILE
    try:
        with read_unlinked(path) as file:
            data = file.read(_MOST)
    except FileNotFoundError:
        raise StoreError(
            f"The store {folder} has lost its key {KEY_FILE}: no subject can be found without it. Restore it from a "
            f"backup, or set it in the environment ({KEY_VARIABLE})."
        ) from None
    if not data or len(data) % _KEY_BYTES or len(data) == _MOST:
        raise StoreError(
            f"The key {path} has {os.path.getsize(path)} bytes instead of {_KEY_BYTES} for each key: it is damaged, "
            "and without it no subject can be found. Restore it from a backup."
        )
    return tuple(data[start : start + _KEY_BYTES] for start in range(0, len(data), _KEY_BYTES))


def write_keys(folder: Path, keys: Keys) -> None:
    """Write a store's keys, readable only by their owner.

    Args:
        folder: The store.
        keys: All of them, from the first.
    """
    write_atomically(folder / KEY_FILE, b"".join(keys))


def next_key(folder: Path, keys: Keys, layers: int) -> Keys:
    """Return the keys with one more than are in use, for a rotation: durable before anything is hashed with it.

    Args:
        folder: The store.
        keys: The result of `read_keys`.
        layers: Number of keys in use.

    Raises:
        StoreError: The environment provides the keys, and has no new one.
    """
    if KEY_VARIABLE in os.environ:
        if len(keys) > layers:
            return keys[: layers + 1]
        raise StoreError(
            f"{KEY_VARIABLE} has {len(keys)} keys, and all are in use. Expected a new one after them, with a colon "
            'between: 64 hexadecimal digits, as `python -c "import secrets; print(secrets.token_hex(32))"` gives them.'
        )
    # keys after those in use come from an interrupted rotation, or were planted by someone who wants to know the next
    # key
    keys = (*keys[:layers], new_key())
    write_keys(folder, keys)
    return keys


def hash_subject(keys: Sequence[bytes], subject: str) -> bytes:
    """Return the keyed hash of a subject: HMAC-SHA256, truncated to 128 bits, with each key in turn.

    A new key hashes the existing hashes, so that a key can be replaced although the ids are no longer known.

    Args:
        keys: The store's keys.
        subject: The canonical id.

    Example:
        >>> first = hash_subject([b"k" * 32], "user-17")
        >>> first.hex()[:8]
        'afc2cd6d'
        >>> hash_subject([b"k" * 32, b"l" * 32], "user-17") == add_layers([b"l" * 32], first)
        True
    """
    return add_layers(keys, subject.encode(errors="surrogatepass"))


def add_layers(keys: Sequence[bytes], value: bytes) -> bytes:
    """Return a hash under further keys.

    Args:
        keys: The further keys.
        value: The hash under those before.
    """
    for key in keys:
        value = hmac.digest(key, value, hashlib.sha256)[:_HASH_BYTES]
    return value


def check_value(keys: Sequence[bytes]) -> str:
    """Return a value that identifies a store's keys without revealing them.

    Args:
        keys: The keys.
    """
    return hash_subject(keys, "\0lightning_s3t: the keys of this store").hex()


def _parse(text: str) -> Keys:
    try:
        keys = tuple(bytes.fromhex(part) for part in text.split(":"))
    except ValueError:
        keys = ()
    if not keys or any(len(key) != _KEY_BYTES for key in keys):
        raise StoreError(
            f"{KEY_VARIABLE} is not a key. Expected {2 * _KEY_BYTES} hexadecimal digits, and for each rotation a "
            "colon and as many again."
        )
    return keys
