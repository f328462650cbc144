"""Digests of tensors: a strong one for what is kept, a quick one on the device for what must not move."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_CHUNK = 1 << 22
# odd multipliers (2**64 divided by the golden ratio, and splitmix64's), written as signed 64-bit integers
_WEIGHT = -7046029254386353131
_MIX = -4658895280553007687
_MIX_AGAIN = -7723592293110705685


def tensor_bytes(tensor: Tensor) -> memoryview:
    r"""Returns a tensor's contents as bytes, whatever its dtype, device and strides.

    Args:
        tensor: Any dense tensor.

    Example:
        >>> bytes(tensor_bytes(torch.tensor([1, 2], dtype=torch.uint8)))
        b'\x01\x02'
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of named tensors: names, dtypes, shapes and contents.

    Args:
        tensors: The tensors by name; their order does not matter.

    Example:
        >>> a = digest_tensors({"w": torch.zeros(2)})
        >>> a == digest_tensors({"w": torch.zeros(2)}), a == digest_tensors({"w": torch.zeros(1, 2)})
        (True, False)
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def fingerprint(tensor: Tensor) -> Tensor:
    """Returns a 64-bit fingerprint of a tensor's bits, computed where the tensor lies.

    A sum, modulo 2**64, of the elements' bits multiplied by odd numbers that depend on the position and then mixed
    (splitmix64's finaliser): any single change shows with certainty, several with probability 1 - 2**-64 or so. It is
    meant against accidents, not against somebody who constructs collisions; what is kept is digested by
    `digest_tensors`.

    Args:
        tensor: Any dense tensor.

    Returns:
        An int64 tensor without dimensions, on the tensor's device.

    Example:
        >>> x = torch.tensor([0.0, 1.0])
        >>> bool(fingerprint(x) == fingerprint(x.clone())), bool(fingerprint(x) == fingerprint(x.flip(0)))
        (True, False)
        >>> bool(fingerprint(torch.tensor([0.0])) == fingerprint(torch.tensor([-0.0])))
        False
    """
    flat = tensor.detach().contiguous().reshape(-1)
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if flat.element_size() not in integer:  # complex128
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view(integer[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK):
        chunk = bits[start : start + _CHUNK].to(torch.int64)
        weight = torch.arange(start + 1, start + 1 + chunk.numel(), device=bits.device) * _WEIGHT
        weight = ((weight ^ (weight >> 29)) * _MIX) | 1
        total += _mix(chunk * weight).sum()
    return total


def _mix(x: Tensor) -> Tensor:
    # without it, changes of the highest bits (two signs of a 64-bit dtype) would cancel out in the sum
    x = (x ^ _shift(x, 30)) * _MIX
    x = (x ^ _shift(x, 27)) * _MIX_AGAIN
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shifts to the right without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Fingerprints many tensors with one transfer per device.

    Args:
        tensors: The tensors by name.

    Returns:
        The fingerprints as Python integers, by name.

    Example:
        >>> fingerprints({"a": torch.zeros(3)})
        {'a': 0}
    """
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    found: dict[str, int] = {}
    for names in by_device.values():
        values = torch.stack([fingerprint(tensors[name]) for name in names]).tolist()
        found.update(zip(names, values, strict=True))
    return {name: found[name] for name in tensors}
