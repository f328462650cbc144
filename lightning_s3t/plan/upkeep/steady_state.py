"""What serves day by day, and the cost of keeping it up, with a rate of requests and periodic fits.

A fit builds all revoked units, so the days between two fits repeat: after each fit the store is full. Given the
expected requests of each day, the places (shard, slice) are first requested at independent exponential times, so a
trial needs one draw per place, for any number of people. The units that a fit has to build are a closed-form
expectation: a unit of stage k survives only if none of its k slices was requested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.cost import Cost, compute_per_sample, cost_of_family, stage_prices, units_by_stage
from lightning_s3t.plan.estimate import Estimate
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.stage_rules import DataMode, EpochRule
from lightning_s3t.plan.theory.simulation import stage_ends
from lightning_s3t.plan.upkeep.scenarios import DAYS_A_YEAR, Scenario
from lightning_s3t.plan.worth import DATA, Worth

TRIALS = 50
BLOCK_NUMBERS = 2_000_000
LOW = 0.05
ROUNDING = 1e-9
DIGITS = 12


@dataclass(frozen=True)
class Upkeep:
    """The units that are rebuilt in a year.

    Attributes:
        units: Units, in all shards.
        fine_tunes: Samples seen, in multiples of one full fine-tune of all shards' data.
        compute: Forward and backward passes, in multiples of those of one full fine-tune.
    """

    units: float
    fine_tunes: float
    compute: float


@dataclass(frozen=True)
class SteadyState:
    """The long-term state of a store.

    Attributes:
        shards: Number of shards, m.
        sequences: The sequences of each shard.
        groups: Number of layer groups.
        epochs: The epoch rule.
        refit_days: Days from one fit to the next; None for no fits.
        quality: Mean quality over the days; 1 is a full store.
        low: On 95 of 100 days at least so much serves.
        days_below: Days a year on which less than the wanted quality serves.
        days_dark: Days a year on which no unit serves.
        requests: Requests a year.
        first_fit: Cost of the first fit of a shard, in multiples of a fine-tune on the shard's rows; for all shards,
            this is also in multiples of a fine-tune on all rows.
        upkeep: Cost per year of the later fits.
        years: Number of years.
    """

    shards: int
    sequences: Family
    groups: int
    epochs: EpochRule
    refit_days: int | None
    quality: Estimate
    low: float
    days_below: float
    days_dark: float
    requests: float
    first_fit: Cost
    upkeep: Upkeep
    years: float

    @property
    def slices(self) -> int:
        """Number of slices, L."""
        return len(self.sequences[0])

    @property
    def compute(self) -> float:
        """The compute of the first and all later fits, in multiples of one full fine-tune."""
        return self.first_fit.compute + self.years * self.upkeep.compute


@dataclass(frozen=True)
class Course:
    """What serves day by day, in each trial.

    Attributes:
        quality: Shape (trials, days); 1 is a full store.
        dark: Whether no unit serves: shape (trials, days).
        asked: Requests that are expected by day: shape (trials, days).
    """

    quality: NDArray[np.float64]
    dark: NDArray[np.bool_]
    asked: NDArray[np.float64]


def steady_state(
    shards: int,
    sequences: Iterable[Iterable[int]],
    rows: int,
    scenario: Scenario,
    refit_days: int | None = 7,
    years: float = 2,
    wanted: float = 0.75,
    worth: Worth = DATA,
    sharding: float = 0.0,
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
    groups: int | None = None,
    trials: int = TRIALS,
    seed: int = 0,
) -> SteadyState:
    """Simulate years of requests and fits; return the quality and the cost.

    A request is carried out on the day it comes. A fit begins and ends with a day, so that the next one starts with a
    full store; how long it takes is not counted.

    Args:
        shards: Number of shards, m.
        sequences: Sequences of the slices, all different.
        rows: Number of people who may ask: of rows, where each is its own subject.
        scenario: How requests arrive.
        refit_days: Days from one fit to the next; None for no fits.
        years: Number of years to simulate.
        wanted: The quality to be served; days below it are counted.
        worth: The worth of a shard by the share of its slices that serves.
        sharding: Loss of quality for each doubling of the number of shards, as a share.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
        groups: As in `cost_of`.
        trials: Number of histories to draw.
        seed: Seed of the random draws.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, or a number is out of range.

    Example:
        >>> from lightning_s3t.plan import SCENARIOS, cyclic
        >>> found = steady_state(5, cyclic(4, 4), rows=50_000, scenario=SCENARIOS["typical"], refit_days=7)
        >>> print(f"{found.quality.mean:.0%} serves, {found.upkeep.fine_tunes:.0f} fine-tunes a year")
        97% serves, 69 fine-tunes a year
    """
    family = check_family(sequences)
    course = quality_by_day(shards, family, rows, scenario, refit_days, years, worth, sharding, trials, seed)
    by_trial = course.quality.mean(axis=1)
    spread = float(by_trial.std(ddof=1)) / math.sqrt(trials)
    return SteadyState(
        shards,
        family,
        len(family[0]) if groups is None else groups,
        epochs,
        refit_days,
        Estimate(float(by_trial.mean()), spread),
        float(np.quantile(course.quality, LOW, method="lower")),
        float((course.quality < wanted - ROUNDING).mean()) * DAYS_A_YEAR,
        float(course.dark.mean()) * DAYS_A_YEAR,
        float(course.asked.mean()) * DAYS_A_YEAR,
        cost_of_family(family, data, epochs, groups),
        _upkeep(shards, family, course.asked, refit_days, data, epochs, groups),
        years,
    )


@lru_cache(maxsize=1)  # another epoch rule changes the cost but not the quality
def quality_by_day(
    shards: int,
    family: Family,
    rows: int,
    scenario: Scenario,
    refit_days: int | None,
    years: float,
    worth: Worth = DATA,
    sharding: float = 0.0,
    trials: int = TRIALS,
    seed: int = 0,
) -> Course:
    """Simulate years of requests and fits for checked sequences, as `steady_state`.

    Args:
        shards: Number of shards, m.
        family: The sequences.
        rows: As in `steady_state`.
        scenario: As in `steady_state`.
        refit_days: As in `steady_state`.
        years: As in `steady_state`.
        worth: As in `steady_state`.
        sharding: As in `steady_state`.
        trials: As in `steady_state`.
        seed: As in `steady_state`.

    Raises:
        ConfigurationError: A number is out of range.
    """
    days = round(years * DAYS_A_YEAR) if math.isfinite(years) else 0
    _check(shards, rows, refit_days, days, sharding, trials)
    slices = len(family[0])
    generator = np.random.default_rng(seed)
    asked = scenario.by_day(rows, days, trials, generator)
    # one row for the days from one fit to the next; days beyond the last are removed at the end
    length = days if refit_days is None else min(refit_days, days)
    spans = -(-days // length)
    reached = np.cumsum(np.pad(asked, ((0, 0), (0, spans * length - days))).reshape(-1, length), axis=1)
    full = float(worth.by_depth(slices)[-1])
    lost = np.broadcast_to(worth.losses(slices), (shards, slices)).ravel() / (shards * full)
    quality = np.empty_like(reached)
    dark = np.empty(reached.shape, bool)
    block = max(BLOCK_NUMBERS // (shards * slices), 1)
    for start in range(0, len(reached), block):
        some = reached[start : start + block]
        clocks = generator.standard_exponential((len(some), shards * slices)) * (shards * slices)
        ends = stage_ends(_days_of(clocks, some).reshape(-1, shards, slices), family)
        quality[start : start + block] = 1 - _summed_by_day(ends.reshape(len(some), -1), lost, length)
        dark[start : start + block] = ends[:, :, 0].max(axis=1)[:, None] <= np.arange(length)
    quality *= (1 - sharding) ** math.log2(shards)
    course = Course(quality.reshape(trials, -1)[:, :days], dark.reshape(trials, -1)[:, :days], asked)
    for numbers in (course.quality, course.dark, course.asked):
        numbers.setflags(write=False)
    return course


def _days_of(clocks: NDArray[np.float64], reached: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the day on which expected requests reach each clock; the number of days where they never do."""
    rows, length = reached.shape
    # one search for all rows: each is lifted above the one before
    most = float(reached.max()) + 1
    lift = np.arange(rows)[:, None] * (2 * most)
    found = np.searchsorted((reached + lift).ravel(), (np.minimum(clocks, most) + lift).ravel())
    days: NDArray[np.int64] = found.reshape(rows, -1).astype(np.int64) - np.arange(rows)[:, None] * length
    return days


def _summed_by_day(ends: NDArray[np.int64], lost: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    rows = len(ends)
    cells = (np.arange(rows)[:, None] * (length + 1) + ends).ravel()
    by_day = np.bincount(cells, np.tile(lost, rows), minlength=rows * (length + 1)).reshape(rows, length + 1)
    # sums in any order of the same losses must be the same share
    gone: NDArray[np.float64] = np.cumsum(by_day[:, :length], axis=1).round(DIGITS)
    return gone


def _upkeep(
    shards: int,
    family: Family,
    asked: NDArray[np.float64],
    refit_days: int | None,
    data: DataMode,
    epochs: EpochRule,
    groups: int | None,
) -> Upkeep:
    slices, days = len(family[0]), asked.shape[1]
    fits = days // refit_days if refit_days is not None else 0
    if refit_days is None or fits == 0:
        return Upkeep(0.0, 0.0, 0.0)
    before_each = asked[:, : fits * refit_days].reshape(-1, fits, refit_days).sum(axis=2)
    stages = np.arange(1, slices + 1)
    revoked = -np.expm1(-before_each[:, :, None] * stages / (shards * slices)).mean(axis=(0, 1))
    units = units_by_stage(family) * revoked * DAYS_A_YEAR / refit_days
    samples = units * stage_prices(slices, data, epochs)
    compute = samples * compute_per_sample(slices, groups)
    return Upkeep(float(units.sum()) * shards, float(samples.sum()), float(compute.sum()))


def _check(shards: int, rows: int, refit_days: int | None, days: int, sharding: float, trials: int) -> None:
    for name, value, least in (
        ("shards", shards, 1),
        ("rows", rows, 1),
        ("refit_days", 1 if refit_days is None else refit_days, 1),
        ("trials", trials, 2),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigurationError(
                f"Expected argument `{name}` to be an integer of at least {least} but got {value!r}."
            )
    if days < 1:
        raise ConfigurationError("Expected argument `years` to be finite and at least a day.")
    if not 0 <= sharding < 1:
        raise ConfigurationError(f"Expected argument `sharding` to be at least 0 and below 1 but got {sharding!r}.")
