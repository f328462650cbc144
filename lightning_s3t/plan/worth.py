"""The worth of a shard that serves a part of its slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError


@dataclass(frozen=True)
class Worth:
    """The worth of a shard by the share of its slices that its best survivor has seen, linear in between.

    The quality of an ensemble is taken to be the mean over its shards. An ensemble answers better than the mean of its
    members, so as an accuracy this is a low estimate.

    Attributes:
        shares: Shares of the slices at which the worth is known, ascending, from above 0 to 1.
        values: The worth at these shares.
        empty: The worth of a shard without units: 0, unless something else answers for it.

    Example:
        >>> Worth((0.5, 1.0), (0.9, 1.0)).by_depth(4).tolist()
        [0.0, 0.45, 0.9, 0.95, 1.0]
    """

    shares: tuple[float, ...] = (1.0,)
    values: tuple[float, ...] = (1.0,)
    empty: float = 0.0

    def __post_init__(self) -> None:
        rising = all(one < other for one, other in zip((0.0, *self.shares), self.shares, strict=False))
        if not self.shares or not rising or self.shares[-1] != 1:
            raise ConfigurationError(
                f"The worth is given at the shares {self.shares}. Expected shares above 0 in ascending order, the "
                "last one 1."
            )
        if len(self.values) != len(self.shares) or not all(map(math.isfinite, (*self.values, self.empty))):
            raise ConfigurationError(
                f"The worth has the values {self.values} and {self.empty} for {len(self.shares)} shares. "
                "Expected a finite number for each."
            )

    @classmethod
    def of_drops(cls, percent: tuple[float, ...]) -> Worth:
        """Return the worth from relative drops of accuracy.

        Args:
            percent: Drop in accuracy, in % of the accuracy with all slices, when 1, 2, ... slices are lost; the last is
                for a single remaining slice.

        Example:
            >>> Worth.of_drops((10.0,)).by_depth(2).tolist()
            [0.0, 0.9, 1.0]
        """
        slices = len(percent) + 1
        values = [1 - drop / 100 for drop in (0.0, *percent)]
        return cls(tuple(stage / slices for stage in range(1, slices + 1)), tuple(reversed(values)))

    @classmethod
    def of_scores(cls, scores: Mapping[int, float], slices: int) -> Worth:
        """Return the worth from scores of a store's units, in multiples of those at full depth.

        Args:
            scores: The mean score by stage, higher being better; it must have the last stage's.
            slices: Number of slices, L.

        Raises:
            ConfigurationError: The last stage does not have a positive score.

        Example:
            >>> Worth.of_scores({1: 0.25, 2: 0.5}, slices=2).by_depth(2).tolist()
            [0.0, 0.5, 1.0]
        """
        full = scores.get(slices, 0.0)
        if not 0 < full < math.inf:
            raise ConfigurationError(
                f"The scores are {dict(scores)}, by stage. Expected a positive score for the last stage, {slices}: "
                "train whole sequences, and monitor a metric where higher is better."
            )
        stages = sorted(scores)
        return cls(tuple(stage / slices for stage in stages), tuple(scores[stage] / full for stage in stages))

    def by_depth(self, slices: int) -> NDArray[np.float64]:
        """Return the worth of a shard by the length of its best surviving prefix.

        A shorter prefix is never worth more than a longer one: where it was measured to be, that counts as noise. Below
        the least share that is known the worth falls to `empty` in a straight line.

        Args:
            slices: Number of slices, L.

        Returns:
            Shape (L + 1,), from nothing left to all slices.
        """
        at = np.arange(slices + 1) / slices
        found = np.interp(at, (0.0, *self.shares), (self.empty, *self.values))
        return np.minimum.accumulate(found[::-1])[::-1]

    def losses(self, slices: int) -> NDArray[np.float64]:
        """Return the loss of worth when a prefix of each length is the first to be lost.

        Args:
            slices: Number of slices, L.

        Returns:
            Shape (L,), summing to the worth of all slices, less `empty`.
        """
        return np.diff(self.by_depth(slices))


DATA = Worth()
"""The share of the training data: the worth of a shard is its share of slices."""

PAPER_CURVES: dict[str, Worth] = {
    name: Worth.of_drops(percent)
    for name, percent in {
        "cifar-10": (0.2, 0.2, 0.6, 0.8, 0.9),
        "cifar-100": (-0.3, 0.9, 2.2, 3.6, 3.4),
        "tiny-imagenet": (1.5, 2.7, 2.9, 4.2, 4.7),
        "mmlu": (4.4, 10.7, 9.3),
        "arc-c": (4.8, 5.3, 9.6),
        "mnli": (0.6, 0.6, 1.3, 3.5, 5.7, 10.2),
        "qnli": (0.2, 1.0, 1.5, 4.5, 5.8, 11.3),
        "mrpc": (3.0, 2.7, 2.2, 12.9, 15.9, 16.7),
        "sts-b": (0.3, 1.2, 2.5, 9.3, 27.2, 23.6),
        "cola": (6.7, 10.7, 11.1, 17.7, 16.3, 21.5),
        "sst-2": (1.2, 0.2, -0.1, -0.1, 1.3, 3.1),
    }.items()
}
"""One shard's relative accuracy by the number of remaining slices, read off Figure 12 of the S3T paper
(2406.16257v3)."""
