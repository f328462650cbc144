"""Identities: subjects as keyed hashes, since an id may itself be personal data."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from lightning_s3t.errors import StoreError
from lightning_s3t.store.files import write_atomically

KEY_FILE = "subject.key"
_KEY_BYTES = 32


def read_or_make_key(folder: Path) -> bytes:
    """Returns the store's own key, made at random when the store is.

    Args:
        folder: The store. The key lies in it, readable by its owner alone.

    Raises:
        StoreError: The key is damaged.
    """
    if (folder / KEY_FILE).exists():
        return read_key(folder)
    key = os.urandom(_KEY_BYTES)
    write_atomically(folder / KEY_FILE, key, mode=0o600)
    return key


def read_key(folder: Path) -> bytes:
    """Returns the key of a store that exists.

    Args:
        folder: The store.

    Raises:
        StoreError: There is none, or it is damaged.
    """
    path = folder / KEY_FILE
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(
            f"The store {folder} has lost its key {KEY_FILE}: no subject can be found without it. Restore it from a "
            "backup."
        ) from None
    if len(key) != _KEY_BYTES:
        raise StoreError(
            f"The key {path} has {len(key)} bytes instead of {_KEY_BYTES}: it is damaged, and without it no subject "
            "can be found. Restore it from a backup."
        )
    return key


def hash_subject(key: bytes, subject: str) -> str:
    """Returns the keyed hash (HMAC-SHA256) that stands for a subject.

    Args:
        key: The store's key.
        subject: The canonical id.

    Example:
        >>> hash_subject(b"k" * 32, "user-17")[:8]
        'afc2cd6d'
    """
    return hmac.new(key, subject.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
