"""Snapshots: the tensors that a unit owns, as safetensors under their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lightning_s3t.errors import StoreError
from lightning_s3t.store.files import write_atomically

FOLDER = "snapshots"


def snapshot_path(store: Path, digest: str) -> Path:
    """Returns where a snapshot lies.

    Args:
        store: The store's folder.
        digest: The snapshot's SHA-256.
    """
    return store / snapshot_name(digest)


def snapshot_name(digest: str) -> str:
    """Returns a snapshot's path within the store.

    Args:
        digest: The snapshot's SHA-256.
    """
    return f"{FOLDER}/{digest}.safetensors"


def encode_snapshot(tensors: Mapping[str, Tensor]) -> tuple[str, bytes]:
    """Returns a snapshot's digest and bytes; equal tensors give equal bytes.

    Args:
        tensors: The tensors by name, of any dtype, device and strides.
    """
    # clones: safetensors refuses tensors that share memory
    plain = {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}
    data = safetensors.torch.save(plain, metadata={"format": "pt"})
    return hashlib.sha256(data).hexdigest(), data


def write_snapshot(store: Path, digest: str, data: bytes) -> Path:
    """Writes a snapshot atomically.

    Args:
        store: The store's folder.
        digest: What `encode_snapshot` gave.
        data: Likewise.
    """
    path = snapshot_path(store, digest)
    write_atomically(path, data)
    return path


def read_snapshot(store: Path, digest: str, what: str) -> dict[str, Tensor]:
    """Reads a snapshot and proves that it is what was written.

    Args:
        store: The store's folder.
        digest: Its digest.
        what: Whose it is, for messages.

    Raises:
        StoreError: It is missing or damaged.
    """
    path = snapshot_path(store, digest)
    advice = "It is not served. Drop the unit (Store.drop) and call fit again: it is trained anew."
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"The snapshot of {what} is missing: {path}. {advice}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise StoreError(f"The snapshot of {what} is damaged: {path} has SHA-256 {found}. {advice}")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise StoreError(f"The snapshot of {what} cannot be read: {error}. {advice}") from error
