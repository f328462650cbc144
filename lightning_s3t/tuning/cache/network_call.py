"""A call of a network, row by row."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.errors import CacheError
from lightning_s3t.tuning.fingerprint import tensor_bytes
from lightning_s3t.tuning.nested import Path, replace_tensors, tensors_in

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, enum.Enum)


@dataclass(frozen=True)
class NetworkCall:
    """The arguments of a call, with what of them belongs to its rows.

    Attributes:
        args: The positional arguments.
        kwargs: Those by name.
        rows: The number of rows: the size of the first tensor's first dimension.
        signature: Everything but the rows: names, values, and the kinds and sizes of tensors.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int
    signature: str

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> NetworkCall:
        """Takes a call apart.

        Args:
            args: Its positional arguments.
            kwargs: Those by name.
            name: The network, for messages.

        Raises:
            CacheError: It has no tensor, or an argument that cannot be compared with those of another call.
        """
        given = (args, dict(sorted(kwargs.items())))
        tensors = [tensor for _, tensor in tensors_in(given)]
        if not tensors or tensors[0].dim() == 0:
            raise CacheError(
                f"{name} is called without a tensor whose first dimension counts rows, so nothing can be kept by row. "
                "Use cache=None."
            )
        rows = len(tensors[0])
        return cls(args, kwargs, rows, _signature(given, rows, name))

    def digests(self) -> list[bytes]:
        """Returns a digest of each row, with all else that bears on what becomes of it."""
        given = (self.args, dict(sorted(self.kwargs.items())))
        by_row = [tensor_bytes(tensor) for _, tensor in tensors_in(given) if self._has_rows(tensor)]
        begun = hashlib.sha256(self.signature.encode())
        found = []
        for row in range(self.rows):
            digest = begun.copy()
            for data in by_row:
                size = len(data) // self.rows
                digest.update(data[row * size : (row + 1) * size])
            found.append(digest.digest())
        return found

    def take(self, *rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments for some rows alone, in memory of their own.

        Where a row lay in its batch must not show: kernels may go other ways for memory that begins elsewhere.

        Args:
            rows: Their numbers.
        """

        def pick(_: Path, tensor: Tensor) -> Tensor:
            if not self._has_rows(tensor):
                return tensor.clone() if tensor.is_inference() else tensor
            return torch.cat([tensor[row : row + 1] for row in rows]).contiguous()

        args, kwargs = replace_tensors((self.args, self.kwargs), pick)
        return args, kwargs

    def _has_rows(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and len(tensor) == self.rows


def _signature(value: Any, rows: int, name: str) -> str:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_nested:
            raise CacheError(f"{name} is called with a tensor that is not dense ({value.layout}). Use cache=None.")
        kind = f"{value.dtype} {value.device}"
        if value.dim() and len(value) == rows:
            return f"rows({kind} {tuple(value.shape[1:])})"
        return f"tensor({kind} {tuple(value.shape)} {hashlib.sha256(tensor_bytes(value)).hexdigest()})"
    if isinstance(value, Mapping):
        parts = [f"{key!r}: {_signature(part, rows, name)}" for key, part in value.items()]
        return f"{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__qualname__}({', '.join(_signature(part, rows, name) for part in value)})"
    if isinstance(value, _PLAIN):
        return f"{type(value).__qualname__}({value!r})"
    raise CacheError(
        f"{name} is called with a {type(value).__name__}, and nobody can tell whether two of them are the same. "
        "Expected tensors, numbers and text, and tuples, lists and dicts of them. Use cache=None."
    )
