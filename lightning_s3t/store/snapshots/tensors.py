"""Tensors of a snapshot, as the bytes of a safetensors file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lightning_s3t.errors import DamagedError, StoreError
from lightning_s3t.store.snapshots.snapshots import NOT_SERVED

_RESERVED = re.compile(r"_*__metadata__")  # safetensors keeps its own header entry under this name


def encode_snapshot(tensors: Mapping[str, Tensor]) -> tuple[str, bytes]:
    """Return a snapshot's digest and bytes; equal tensors give equal bytes.

    Args:
        tensors: The tensors by name, of any dtype that safetensors has, any device and strides.

    Raises:
        StoreError: A tensor is of an unsupported kind, or has no values.
    """
    data = encode_tensors({_escape(name): tensor for name, tensor in tensors.items()})
    return hashlib.sha256(data).hexdigest(), data


def encode_tensors(tensors: Mapping[str, Tensor], **metadata: str) -> bytes:
    """Return the bytes of a safetensors file.

    Args:
        tensors: The tensors by name, of any dtype that safetensors has, any device and strides.
        metadata: Further entries for the file's header.

    Raises:
        StoreError: A tensor is of an unsupported kind, or has no values.
    """
    plain = {name: _plain(name, tensors[name]) for name in sorted(tensors)}
    data: bytes = safetensors.torch.save(plain, metadata={"format": "pt", **metadata})
    return data


def decode_snapshot(data: bytes, what: str) -> dict[str, Tensor]:
    """Return the tensors of a snapshot.

    Args:
        data: The output of `encode_snapshot`.
        what: The owner, for the message.

    Raises:
        DamagedError: It cannot be decoded.
    """
    try:
        return {_unescape(name): tensor for name, tensor in safetensors.torch.load(data).items()}
    except SafetensorError as error:
        raise DamagedError(f"The snapshot of {what} cannot be read: {error}. {NOT_SERVED}") from error


def _plain(name: str, tensor: Tensor) -> Tensor:
    try:
        if tensor.layout is not torch.strided:
            raise NotImplementedError(f"its layout is {tensor.layout}")
        # a clone: safetensors refuses tensors that share memory
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        safetensors.torch.save({"x": plain[:0] if plain.dim() else plain})
    except (NotImplementedError, KeyError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"The tensor {name} ({tensor.dtype}, {tensor.device}) cannot be saved: {error}. Expected a dense tensor "
            "with values, of a type that safetensors supports: convert it, or exclude it from training."
        ) from error
    return plain


def _escape(name: str) -> str:
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def _unescape(name: str) -> str:
    return name[1:] if name != "__metadata__" and _RESERVED.fullmatch(name) else name
