"""What training some sequences costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.stage_rules import DataMode, EpochRule
from lightning_s3t.plan.units import SliceSequence

ROUNDING = 1e-9


@dataclass(frozen=True)
class Cost:
    """What it takes to train one shard on some sequences.

    Attributes:
        units: Number of units: of different prefixes of the sequences.
        fine_tunes: Samples seen, in multiples of one full fine-tune (all slices for as many epochs).
    """

    units: int
    fine_tunes: float


def cost_of(sequences: Iterable[Iterable[int]], data: DataMode = "cumulative", epochs: EpochRule = "full") -> Cost:
    """Returns what training some sequences costs; sequences with a common prefix share its units.

    Args:
        sequences: Sequences of the slices, all different.
        data: A stage trains on all slices of its prefix ("cumulative") or on the last one ("disjoint").
        epochs: "full" for as many epochs a stage as a fine-tune has, "sisa" for 2/(L+1) of them.

    Raises:
        ConfigurationError: A sequence is not a permutation or is there twice, or an argument is unknown.

    Example:
        >>> cost_of([(0, 1, 2), (0, 2, 1)])
        Cost(units=5, fine_tunes=3.666...)
    """
    return cost_of_family(check_family(sequences), data, epochs)


def cost_of_family(family: Family, data: DataMode, epochs: EpochRule) -> Cost:
    """Returns what training checked sequences costs, as `cost_of`.

    Args:
        family: The sequences.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
    """
    prices = stage_prices(len(family[0]), data, epochs)
    units = {sequence[:stage] for sequence in family for stage in range(1, len(sequence) + 1)}
    return Cost(len(units), math.fsum(prices[len(unit) - 1] for unit in units))


@dataclass(frozen=True, eq=False)
class Limit:
    """What training the sequences of a shard may cost.

    Attributes:
        prices: Of a unit, by stage: shape (L,).
        most: What all units may cost together.
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
        """Checks a limit.

        Args:
            slices: Number of slices, L.
            units: At most so many units.
            fine_tunes: At most so many samples, in multiples of one full fine-tune.
            data: As in `cost_of`.
            epochs: As in `cost_of`.

        Raises:
            ConfigurationError: Not exactly one limit is given, or it does not pay for one sequence.

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
                f"The limit is {name}={given!r}, and one sequence of {slices} slices costs {prices.sum():g}. "
                "Expected a finite limit that pays for one sequence."
            )
        return cls(prices, most)

    @property
    def slices(self) -> int:
        """Number of slices, L."""
        return len(self.prices)

    def price(self, sequences: Iterable[SliceSequence]) -> float:
        """Returns what training some sequences costs; shared prefixes are paid for once.

        Args:
            sequences: Sequences of the slices.
        """
        units = {sequence[:stage] for sequence in sequences for stage in range(1, len(sequence) + 1)}
        return math.fsum(self.prices[len(unit) - 1] for unit in units)


def stage_prices(slices: int, data: DataMode, epochs: EpochRule) -> NDArray[np.float64]:
    """Returns what a unit of each stage costs, in multiples of one full fine-tune.

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
