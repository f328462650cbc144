"""Sums over rows that a closed-form head is solved from: integers, so that a row can be taken out to the last bit."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_s3t.core.floor import FloorPart, Task
from lightning_s3t.errors import DataError, StoreError

_CHUNK = 4096  # number of rows that are held in float64 at a time
_LARGEST_SUM = 2.0**53  # float64 holds the integers below
LARGEST_TARGET = 1 << 20  # so that the squares of eight million targets have a sum in int64


@dataclass(frozen=True)
class FeatureRows:
    """Rows of integer features with their targets.

    Attributes:
        features: `[rows, width]`, int8.
        targets: `[rows]` classes, or `[rows, outputs]` integers; int32.
    """

    features: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def encode(self, bits: int) -> list[bytes]:
        """Return the bytes of each row, of one length.

        Args:
            bits: Number of bits of a feature; they are packed.
        """
        features, targets = _pack(self.features.numpy(), bits), self.targets.contiguous().numpy()
        return [target.tobytes() + row.tobytes() for row, target in zip(features, targets, strict=True)]

    @classmethod
    def decode(cls, rows: list[bytes], part: FloorPart, task: Task) -> FeatureRows:
        """Return rows from the output of `encode`.

        Args:
            rows: The bytes of each.
            part: The floor's settings.
            task: The kind of its targets.

        Raises:
            StoreError: A row has another length.
        """
        numbers = 1 if task == "multiclass" else part.outputs
        size = 4 * numbers + (part.width * part.bits + 7) // 8
        if any(len(row) != size for row in rows):
            raise StoreError(f"A row of the store's floor does not have {size} bytes: the ledger is damaged.")
        data = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), size)
        targets = torch.from_numpy(data[:, : 4 * numbers].copy()).view(torch.int32)
        features = torch.from_numpy(_unpack(data[:, 4 * numbers :], part.bits, part.width))
        return cls(features, targets[:, 0] if task == "multiclass" else targets)


def _pack(features: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:
    """Return rows of integers of so many bits, in two's complement, packed."""
    if bits == 8:
        return features.view(np.uint8)
    each = np.unpackbits(features.view(np.uint8)[:, :, None], axis=2)[:, :, 8 - bits :]
    return np.packbits(each.reshape(len(features), -1), axis=1)


def _unpack(packed: npt.NDArray[np.uint8], bits: int, width: int) -> npt.NDArray[np.int8]:
    whole: npt.NDArray[np.uint8] = packed.copy()
    if bits < 8:
        each = np.unpackbits(packed, axis=1, count=width * bits).reshape(len(packed), width, bits)
        high = np.repeat(each[:, :, :1], 8 - bits, axis=2)  # the sign
        whole = np.packbits(np.concatenate([high, each], axis=2), axis=2)[:, :, 0]
    return whole.view(np.int8)


class FeatureSums:
    """Sums over rows: of the products of their features, of features and targets, and of squared targets.

    The features get a constant 1 as their last column. All sums are integers, so they do not depend on the order of the
    rows, and removing a row gives, bit for bit, the sums without it.

    Args:
        part: The floor's settings.
        task: The kind of its targets.

    Attributes:
        gram: Of the products, `[width + 1, width + 1]`; float64, which holds these integers exactly.
        cross: `[width + 1, outputs]`, int64.
        squares: `[outputs]`, int64.
        rows: Number of rows.

    Example:
        >>> part = FloorPart(layer="head", width=2, outputs=3, bits=8, target_step=1.0)
        >>> rows = FeatureRows(torch.tensor([[3, -4], [5, 6]], dtype=torch.int8), torch.tensor([2, 0]).int())
        >>> sums = FeatureSums(part, "multiclass")
        >>> sums.add(rows)
        >>> sums.gram.tolist(), sums.cross[:, 2].tolist()
        ([[34.0, 18.0, 8.0], [18.0, 52.0, 2.0], [8.0, 2.0, 2.0]], [3, -4, 1])
        >>> sums.subtract(rows)
        >>> sums.rows, float(sums.gram.abs().sum())
        (0, 0.0)
    """

    def __init__(self, part: FloorPart, task: Task) -> None:
        self.part = part
        self.task = task
        width, outputs = part.width + 1, part.outputs
        # float64 has a fast product, and is exact below 2^53: up to 5e11 rows of 8 bits
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, outputs, dtype=torch.int64)
        self.squares = torch.zeros(outputs, dtype=torch.int64)
        self.rows = 0

    def add(self, rows: FeatureRows) -> None:
        """Add rows.

        Args:
            rows: The rows.

        Raises:
            DataError: A feature or a target is out of range, or the sums would be.
        """
        self._check(rows)
        self._accumulate(rows, 1)
        self._check_sums()

    def subtract(self, rows: FeatureRows) -> None:
        """Take rows out that were added before.

        Args:
            rows: The rows.
        """
        self._accumulate(rows, -1)

    def add_sums(self, other: FeatureSums) -> None:
        """Add the sums over other rows.

        Args:
            other: The sums, of the same settings and task.

        Raises:
            DataError: The sums would be out of range.
        """
        self.gram += other.gram
        self.cross += other.cross
        self.squares += other.squares
        self.rows += other.rows
        self._check_sums()

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors, to be kept: of the symmetric one the lower triangle, in the fewest bytes."""
        # no product is larger than the largest on the diagonal
        narrow = self.gram.diagonal().max() <= torch.iinfo(torch.int32).max
        triangle = self.gram.view(-1).index_select(0, _triangle(len(self.gram)))
        return {
            "gram": triangle.to(torch.int32 if narrow else torch.int64),
            "cross": self.cross,
            "squares": self.squares,
            "rows": torch.tensor(self.rows),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], part: FloorPart, task: Task) -> FeatureSums:
        """Return sums from the output of `to_tensors`.

        Args:
            tensors: By name.
            part: The floor's settings.
            task: The kind of its targets.

        Raises:
            StoreError: They are those of another floor.
        """
        sums = cls(part, task)
        expected = {name: tensor.shape for name, tensor in sums.to_tensors().items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            raise StoreError(f"The sums of the store's floor have the shapes {found}. Expected {expected}.")
        sums.gram.view(-1)[_triangle(len(sums.gram))] = tensors["gram"].double()
        sums.gram += sums.gram.tril(-1).T
        sums.cross, sums.squares = tensors["cross"].clone(), tensors["squares"].clone()
        sums.rows = int(tensors["rows"])
        return sums

    def _accumulate(self, rows: FeatureRows, sign: int) -> None:
        for start in range(0, len(rows), _CHUNK):
            features, targets = rows.features[start : start + _CHUNK], rows.targets[start : start + _CHUNK]
            wide = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
            numbers = self._numbers(targets)
            self.gram.addmm_(wide.T, wide, alpha=sign)
            self.cross += sign * (wide.T @ numbers.double()).long()
            self.squares += sign * numbers.square().sum(0)
        self.rows += sign * len(rows)

    def _numbers(self, targets: Tensor) -> Tensor:
        if self.task == "multiclass":
            return torch.nn.functional.one_hot(targets.long(), self.part.outputs)
        return targets.long()

    def _check(self, rows: FeatureRows) -> None:
        part, targets = self.part, rows.targets
        if len(rows) and int(rows.features.abs().max()) > part.limit:
            raise DataError(f"A feature is larger than {part.limit}, the limit of {part.bits} bits.")
        if self.task == "multiclass" and len(rows) and not 0 <= int(targets.min()) <= int(targets.max()) < part.outputs:
            raise DataError(
                f"The targets are classes from {int(targets.min())} to {int(targets.max())}, but the head "
                f"{part.layer} has {part.outputs} outputs. Expected classes from 0 to {part.outputs - 1}."
            )
        largest = int(targets.abs().max()) if len(rows) else 0
        if largest > LARGEST_TARGET:
            raise DataError(
                f"A target is more than {LARGEST_TARGET:,} steps of {part.target_step} from zero, too many for exact "
                "sums. Use a larger step: `target_step` of Floor or ClosedForm."
            )

    def _check_sums(self) -> None:
        # squares grow fastest; their sum becomes negative when it leaves int64, which one addition at a time shows
        if bool((self.squares < 0).any()) or float(self.gram.diagonal().max()) >= _LARGEST_SUM:
            raise DataError(
                f"The sums over {self.rows:,} rows are too large to be exact. Use a larger step for the targets "
                "(`target_step` of Floor or ClosedForm), or fewer rows."
            )


@functools.lru_cache(maxsize=4)
def _triangle(width: int) -> Tensor:
    """Return where a square matrix has its lower triangle, in the matrix as one row."""
    row, column = torch.tril_indices(width, width)
    places: Tensor = row * width + column
    return places
