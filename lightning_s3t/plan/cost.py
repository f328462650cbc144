"""The cost of training sequences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.stage_rules import DataMode, EpochRule, group_of_stage
from lightning_s3t.plan.units import SliceSequence

ROUNDING = 1e-9


@dataclass(frozen=True)
class Cost:
    """The cost of training one shard on some sequences.

    Attributes:
        units: Number of units: of different prefixes of the sequences.
        fine_tunes: Samples seen, in multiples of one full fine-tune (all slices for as many epochs).
        compute: Forward and backward passes, in multiples of those of one full fine-tune with every adapter trainable.
            Every sample goes forward through the whole network; the backward pass ends at the stage's layer group. Both
            passes are assumed to cost the same.
    """

    units: int
    fine_tunes: float
    compute: float


def cost_of(
    sequences: Iterable[Iterable[int]],
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
    groups: int | None = None,
) -> Cost:
    """Return the cost of training sequences; sequences with a common prefix share its units.

    Args:
        sequences: Sequences of the slices, all different.
        data: A stage trains on all slices of its prefix ("cumulative") or on the last one ("disjoint").
        epochs: "full" for as many epochs per stage as a fine-tune has, "sisa" for 2/(L+1) of them.
        groups: Number of layer groups, at most L; None for one per slice. Only the compute depends on it: with fewer
            groups than slices a stage may continue with the group of the previous stage, on as many samples.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, an argument is unknown, or there are more
            groups than slices.

    Example:
        >>> cost_of([(0, 1, 2), (0, 2, 1)])
        Cost(units=5, fine_tunes=3.666..., compute=3.333...)
        >>> cost_of([(0, 1, 2), (0, 2, 1)], groups=1).compute
        3.666...
    """
    return cost_of_family(check_family(sequences), data, epochs, groups)


def cost_of_family(family: Family, data: DataMode, epochs: EpochRule, groups: int | None = None) -> Cost:
    """Return the cost of training checked sequences, as `cost_of`.

    Args:
        family: The sequences.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
        groups: As in `cost_of`.
    """
    slices = len(family[0])
    samples = stage_prices(slices, data, epochs)
    compute = samples * compute_per_sample(slices, groups)
    units = units_by_stage(family)
    return Cost(int(units.sum()), math.fsum(units * samples), math.fsum(units * compute))


def units_by_stage(family: Family) -> NDArray[np.int64]:
    """Return how many different units of each stage some sequences have.

    Args:
        family: The sequences.

    Returns:
        Shape (L,).

    Example:
        >>> units_by_stage(((0, 1, 2), (0, 2, 1))).tolist()
        [1, 2, 2]
    """
    stages = range(1, len(family[0]) + 1)
    return np.array([len({sequence[:stage] for sequence in family}) for stage in stages])


@dataclass(frozen=True, eq=False)
class Limit:
    """The limit on the cost of training the sequences of a shard.

    Attributes:
        prices: Cost of a unit, by stage: shape (L,).
        most: The most that all units together may cost.
    """

    prices: NDArray[np.float64]
    most: float

    @classmethod
    def of(
        cls,
        slices: int,
        units: int | None = None,
        fine_tunes: float | None = None,
        data: DataMode = "cumulative",
        epochs: EpochRule = "full",
    ) -> Limit:
        """Check a limit.

        Args:
            slices: Number of slices, L.
            units: The largest number of units.
            fine_tunes: The largest number of samples, in multiples of one full fine-tune.
            data: As in `cost_of`.
            epochs: As in `cost_of`.

        Raises:
            ConfigurationError: Not exactly one limit is given, or it is too small for one sequence.

        Example:
            >>> Limit.of(slices=3, units=6).price([(0, 1, 2), (0, 2, 1)])
            5.0
        """
        if (units is None) == (fine_tunes is None):
            raise ConfigurationError("Expected exactly one of `units` and `fine_tunes`.")
        prices = np.ones(slices) if units is not None else stage_prices(slices, data, epochs)
        most = float(units if units is not None else fine_tunes or 0) + ROUNDING
        if not float(prices.sum()) <= most < math.inf:
            name, given = ("units", units) if units is not None else ("fine_tunes", fine_tunes)
            raise ConfigurationError(
                f"The limit is {name}={given!r}, but one sequence of {slices} slices costs {prices.sum():g}. Expected "
                "a finite limit that is enough for one sequence."
            )
        return cls(prices, most)

    @property
    def slices(self) -> int:
        """Number of slices, L."""
        return len(self.prices)

    def price(self, sequences: Iterable[SliceSequence]) -> float:
        """Return the cost of training sequences; shared prefixes count once.

        Args:
            sequences: Sequences of the slices.
        """
        units = {sequence[:stage] for sequence in sequences for stage in range(1, len(sequence) + 1)}
        return math.fsum(self.prices[len(unit) - 1] for unit in units)


def stage_prices(slices: int, data: DataMode, epochs: EpochRule) -> NDArray[np.float64]:
    """Return the cost of a unit of each stage, in multiples of one full fine-tune.

    Args:
        slices: Number of slices, L.
        data: As in `cost_of`.
        epochs: As in `cost_of`.

    Returns:
        Shape (L,).

    Raises:
        ConfigurationError: An argument is unknown.
    """
    if data not in ("cumulative", "disjoint") or epochs not in ("full", "sisa"):
        raise ConfigurationError(
            f"Expected `data` to be 'cumulative' or 'disjoint', and `epochs` to be 'full' or 'sisa', but got {data!r} "
            f"and {epochs!r}."
        )
    stages = np.arange(1, slices + 1)
    prices = stages / slices if data == "cumulative" else np.full(slices, 1 / slices)
    return prices * 2 / (slices + 1) if epochs == "sisa" else prices


def compute_per_sample(slices: int, groups: int | None = None) -> NDArray[np.float64]:
    """Return the cost of a training step at each stage, in multiples of a step with every adapter trainable.

    Half of a step is the forward pass. The other half is the backward pass, of which a stage needs the part down to its
    layer group: groups are assumed to be of equal size.

    Args:
        slices: Number of slices, L.
        groups: Number of layer groups; None for one per slice.

    Returns:
        Shape (L,).

    Raises:
        ConfigurationError: There are more groups than slices, or none.

    Example:
        >>> compute_per_sample(slices=4).tolist(), compute_per_sample(slices=4, groups=2).tolist()
        ([0.625, 0.75, 0.875, 1.0], [0.75, 0.75, 1.0, 1.0])
    """
    if groups is None:
        groups = slices
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= slices:
        raise ConfigurationError(
            f"Expected argument `groups` to be an integer from 1 to the number of slices, {slices}, but got "
            f"{groups!r}: a layer group that no stage trains is never adapted."
        )
    return np.array([1 + group_of_stage(stage, slices, groups) / groups for stage in range(1, slices + 1)]) / 2
