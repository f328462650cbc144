"""The order in which a unit sees its rows: from its seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from lightning_s3t.tuning.randomness import derive_seed


class UnitShuffle(Sampler[int]):
    """Shuffles a unit's rows, every epoch in another order.

    torch's own `RandomSampler` goes on drawing from one generator, and how much of it an epoch uses up depends on how
    the loader reads it: worker processes read ahead, so from the second epoch on the order would be another one than
    without them.

    Args:
        rows: How many rows the unit has.
        seed: The unit's seed.

    Example:
        >>> first, same = UnitShuffle(5, seed=1), UnitShuffle(5, seed=1)
        >>> sorted(first) == [0, 1, 2, 3, 4], list(first) == (list(same), list(same))[1]
        (True, True)
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self._epoch))
        self._epoch += 1
        yield from torch.randperm(self._rows, generator=generator).tolist()

    def __len__(self) -> int:
        return self._rows
