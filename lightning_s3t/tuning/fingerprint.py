"""Digests of tensors: a strong one for stored tensors, a fast one on the device for tensors that must not change."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn

# 64-bit words that are mixed at once: a megabyte, so that the data stays in the processor's cache
_ROW = 1 << 17
# on an accelerator, where the fixed cost of a step dominates
_ROWS = 16
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
    """Return the SHA-256 of named tensors: names, dtypes, shapes and contents.

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


def is_constant(tensor: Tensor) -> bool:
    """Return whether all elements of a tensor are equal, as in a layer that has just been made with ones or zeros.

    Args:
        tensor: Any dense tensor; one without elements counts as constant.

    Example:
        >>> is_constant(torch.ones(2, 2)), is_constant(torch.tensor([1.0, 2.0]))
        (True, False)
    """
    flat = tensor.detach().reshape(-1)
    return bool((flat == flat[:1]).all())


def fingerprint(tensor: Tensor) -> Tensor:
    """Return a 64-bit fingerprint of a tensor's bits, computed on the tensor's device.

    A sum, modulo 2**64, of 64-bit words multiplied by odd numbers that depend on the place and then mixed (splitmix64's
    finaliser), and once more of these sums: any change within one word, so of any single element, shows with certainty,
    several with probability 1 - 2**-64 or so. It detects accidents, not deliberately constructed collisions; stored
    tensors are digested by `digest_tensors`. Equal bits give equal fingerprints on every device.

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
    words = _words(tensor)
    weights = _weights(words.device)
    whole = words.numel() // _ROW
    rows = words[: whole * _ROW].view(whole, _ROW)
    at_once = 1 if words.device.type == "cpu" else _ROWS
    sums = [_mix(rows[start : start + at_once] * weights).sum(1) for start in range(0, whole, at_once)]
    rest = words[whole * _ROW :]
    sums.append(_mix(rest * weights[: rest.numel()]).sum(0, keepdim=True))
    found = torch.cat(sums)
    return _mix(found * _odd_numbers(found.numel(), found.device)).sum()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Fingerprint many tensors with one transfer per device; a tensor with several names is read once.

    Args:
        tensors: The tensors by name.

    Returns:
        The fingerprints as Python integers, by name.

    Example:
        >>> fingerprints({"a": torch.zeros(3)})
        {'a': 0}
    """
    memory = {name: _memory_of(tensor) for name, tensor in tensors.items()}
    different = {memory[name]: tensor for name, tensor in tensors.items()}
    by_device: dict[torch.device, list[Hashable]] = {}
    for key, tensor in different.items():
        by_device.setdefault(tensor.device, []).append(key)
    found: dict[Hashable, int] = {}
    for keys in by_device.values():
        values = torch.stack([fingerprint(different[key]) for key in keys]).tolist()
        found.update(zip(keys, values, strict=True))
    return {name: found[memory[name]] for name in tensors}


def _memory_of(tensor: Tensor) -> Hashable:
    """Return a key that is equal for two tensors only if they are identical views of the same memory."""
    # a subclass may keep its values elsewhere, and have no memory, or the address of another tensor
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or not tensor.data_ptr():
        return id(tensor)
    return (
        tensor.device,
        tensor.dtype,
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _words(tensor: Tensor) -> Tensor:
    """Return a tensor's contents as 64-bit integers, filled up with zeros."""
    contents = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    missing = -contents.numel() % 8
    if missing:
        contents = nn.functional.pad(contents, (0, missing))
    elif contents.storage_offset() % 8:
        contents = contents.clone()
    return contents.view(torch.int64)


@functools.lru_cache(maxsize=8)
def _weights(device: torch.device) -> Tensor:
    return _odd_numbers(_ROW, device)


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """Return odd numbers that look drawn at random."""
    return _mix(torch.arange(1, count + 1, device=device) * _WEIGHT) | 1


def _mix(x: Tensor) -> Tensor:
    """Mix 64-bit integers in place, one to one; 0 stays 0."""
    # without it, changes of the highest bits (two signs of a 64-bit dtype) would cancel out in the sum
    x.bitwise_xor_(_shift(x, 30)).mul_(_MIX)
    x.bitwise_xor_(_shift(x, 27)).mul_(_MIX_AGAIN)
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right without the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
