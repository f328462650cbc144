"""Snapshots: the tensors that a unit owns, as safetensors under their digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lightning_s3t.errors import DamagedError, StoreError
from lightning_s3t.store.files import write_atomically

FOLDER = "snapshots"
_RESERVED = re.compile(r"_*__metadata__")  # safetensors keeps its own header entry under this name


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
        tensors: The tensors by name, of any dtype that safetensors has, any device and strides.

    Raises:
        StoreError: A tensor is of another kind, or has no values.
    """
    plain = {_escape(name): _plain(name, tensors[name]) for name in sorted(tensors)}
    data = safetensors.torch.save(plain, metadata={"format": "pt"})
    return hashlib.sha256(data).hexdigest(), data


def write_snapshot(store: Path, digest: str, data: bytes) -> Path:
    """Writes a snapshot atomically.

    Args:
        store: The store's folder.
        digest: What `encode_snapshot` gave.
        data: Likewise.

    Raises:
        StoreError: The disk is full, or cannot be written.
    """
    path = snapshot_path(store, digest)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"The snapshot {path} could not be written ({error}).") from error
    return path


def read_snapshot(store: Path, digest: str, what: str) -> dict[str, Tensor]:
    """Reads a snapshot and proves that it is what was written.

    Args:
        store: The store's folder.
        digest: Its digest.
        what: Whose it is, for messages.

    Raises:
        DamagedError: It is missing or damaged.
        StoreError: The disk cannot be read.
    """
    path = snapshot_path(store, digest)
    advice = "It is not served. `s3t store verify` takes the unit out, and the next fit trains it anew."
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"The snapshot of {what} is missing: {path}. {advice}") from error
    except OSError as error:
        raise StoreError(
            f"The snapshot of {what} cannot be read: {path} ({error.strerror}). Remove the cause, and try again."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise DamagedError(f"The snapshot of {what} is damaged: {path} has SHA-256 {found}. {advice}")
    try:
        return {_unescape(name): tensor for name, tensor in safetensors.torch.load(data).items()}
    except SafetensorError as error:
        raise DamagedError(f"The snapshot of {what} cannot be read: {error}. {advice}") from error


def _plain(name: str, tensor: Tensor) -> Tensor:
    try:
        if tensor.layout is not torch.strided:
            raise NotImplementedError(f"its layout is {tensor.layout}")
        # a clone: safetensors refuses tensors that share memory
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        safetensors.torch.save({"x": plain[:0] if plain.dim() else plain})
    except (NotImplementedError, KeyError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"The tensor {name} ({tensor.dtype}, {tensor.device}) cannot be kept: {error}. Expected a dense tensor "
            "with values, of a type that safetensors has: convert it, or keep it out of what is trained."
        ) from error
    return plain


def _escape(name: str) -> str:
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def _unescape(name: str) -> str:
    return name[1:] if name != "__metadata__" and _RESERVED.fullmatch(name) else name
