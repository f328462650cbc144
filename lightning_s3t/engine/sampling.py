"""The script's sampling of rows, applied to a unit's rows alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_s3t.errors import DataError, UnsupportedError
from lightning_s3t.tuning.randomness import derive_seed


@dataclass(frozen=True)
class Sampling:
    """How a sampler draws rows.

    Attributes:
        shuffled: Whether every epoch has another order.
        chosen: The rows that it may draw; None for all.
        weights: One a row, where it draws by weight.
        draws_per_row: Number of draws in an epoch, per row. A unit uses the same number for each of its own rows, since
            it must not depend on the number of other rows. None where it goes through all rows once.
        replacement: Whether it may draw a row twice in an epoch.
    """

    shuffled: bool
    chosen: frozenset[int] | None = None
    weights: Tensor | None = None
    draws_per_row: Fraction | None = None
    replacement: bool = False

    def __str__(self) -> str:
        """The description in a store: weights belong to each unit's rows."""
        if self.draws_per_row is None:
            return "shuffled" if self.shuffled else "in order"
        how = "by weight" if self.weights is not None else "uniformly"
        return f"drawn {how}, {self.draws_per_row} a row, {'with' if self.replacement else 'without'} replacement"

    def draws(self, rows: Sequence[int], seed: int, replicas: int, rank: int) -> UnitDraws | None:
        """Return a sampler for a unit; None where it goes through all rows once.

        Args:
            rows: The unit's rows.
            seed: The unit's seed.
            replicas: Number of processes that train together.
            rank: The number of this one.
        """
        if self.draws_per_row is None:
            return None
        weights = self.weights[list(rows)] if self.weights is not None else torch.ones(len(rows), dtype=torch.float64)
        count = max(1, round(self.draws_per_row * len(rows)))
        count = count if self.replacement else min(count, len(rows))
        return UnitDraws(weights, count, self.replacement, seed, replicas, rank)


class UnitDraws(DistributedSampler[int]):
    """Draws rows of a unit by weight, different ones in every epoch.

    With several processes each takes its part of the same draws. (It is a DistributedSampler in name, so that Lightning
    does not put another one around it.)

    Args:
        weights: One for each row of the unit.
        count: Number of rows per epoch.
        replacement: Whether a row may be drawn twice in an epoch.
        seed: The unit's seed.
        replicas: Number of processes that train together.
        rank: The number of this one.

    Example:
        >>> draws = UnitDraws(torch.tensor([0.0, 1.0, 1.0]), 6, True, seed=1)
        >>> len(list(draws)), 0 in list(draws)
        (6, False)
    """

    def __init__(
        self, weights: Tensor, count: int, replacement: bool, seed: int, replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(range(len(weights)), replicas, rank)  # type: ignore[arg-type]
        self._weights = weights
        self._count = count
        self._replacement = replacement
        self._unit_seed = seed
        self._round = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._unit_seed, "order", self._round))
        self._round += 1
        drawn = torch.multinomial(self._weights, self._count, self._replacement, generator=generator).tolist()
        padded = [drawn[at % self._count] for at in range(len(self) * self.num_replicas)]
        yield from padded[self.rank :: self.num_replicas]

    def __len__(self) -> int:
        return math.ceil(self._count / self.num_replicas)


def sampling_of(loader: DataLoader[Any]) -> Sampling:
    """Read how a dataloader draws rows.

    Args:
        loader: A dataloader over a map-style data set.

    Raises:
        UnsupportedError: It draws them in a way that cannot be repeated over a part of the rows.
        DataError: It has not one weight a row.
    """
    sampler, total = loader.sampler, len(loader.dataset)  # type: ignore[arg-type]
    # of a class of the script's own the order would be lost: units have samplers of their own
    kind = type(sampler)
    if kind is SequentialSampler:
        return Sampling(shuffled=False)
    if kind is DistributedSampler:
        return Sampling(shuffled=getattr(sampler, "shuffle", True))
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples == total:  # type: ignore[attr-defined]
        return Sampling(shuffled=True)
    if type(sampler) is SubsetRandomSampler:
        return _chosen(sampler, total)
    if type(sampler) is WeightedRandomSampler:
        return _weighted(sampler, total)
    if type(sampler) is RandomSampler and (sampler.replacement or sampler.num_samples < total):
        return Sampling(True, None, None, Fraction(sampler.num_samples, total), sampler.replacement)
    raise UnsupportedError(
        f"The train dataloader draws rows by {type(sampler).__name__}, which may depend on the whole data set: every "
        "unit would carry information about all rows. Use shuffle=True or False, or torch's WeightedRandomSampler, "
        "SubsetRandomSampler or RandomSampler."
    )


def _chosen(sampler: SubsetRandomSampler, total: int) -> Sampling:
    rows = [int(row) for row in sampler.indices]
    if len(set(rows)) < len(rows) or any(not 0 <= row < total for row in rows):
        raise DataError(
            f"The SubsetRandomSampler has {len(rows)} indices, but some repeat or are not among the {total} rows of "
            "the data set. Expected each row once: use WeightedRandomSampler to draw some rows more often."
        )
    return Sampling(True, frozenset(rows))


def _weighted(sampler: WeightedRandomSampler, total: int) -> Sampling:
    weights = torch.as_tensor(sampler.weights, dtype=torch.float64)
    if weights.shape != (total,) or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise DataError(
            f"The WeightedRandomSampler has weights of shape {tuple(weights.shape)} for {total} rows. Expected one "
            "weight for each row, finite and not negative."
        )
    drawn = frozenset(weights.nonzero().flatten().tolist())
    chosen = drawn if len(drawn) < total else None
    return Sampling(True, chosen, weights, Fraction(sampler.num_samples, total), bool(sampler.replacement))
