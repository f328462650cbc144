"""The number of requests until the serving units of a plan are worth less than a level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.estimate import Estimate
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.problem import PlanProblem, Prior
from lightning_s3t.plan.theory.histories import NEVER, by_slice
from lightning_s3t.plan.theory.simulation import stage_ends
from lightning_s3t.plan.worth import DATA, Worth

LEVELS = (0.75, 0.5)
TRIALS = 4_000
BLOCK_NUMBERS = 4_000_000
LOW = 0.05
ROUNDING = 1e-9


@dataclass(frozen=True)
class Endurance:
    """The number of requests for which a plan serves at least a level.

    Attributes:
        level: The share of a full store's worth that should be served.
        requests: Number of the request with which less than that serves. Its mean is infinite if some trials never get
            there.
        low: The number that 95 of 100 trials reach.
    """

    level: float
    requests: Estimate
    low: float


def requests_until(
    shards: int,
    sequences: Iterable[Iterable[int]],
    levels: Iterable[float] = LEVELS,
    worth: Worth = DATA,
    prior: Prior | None = None,
    trials: int = TRIALS,
    seed: int = 0,
) -> tuple[Endurance, ...]:
    """Return the number of requests until the serving units are worth less than each level.

    `worth` gives the worth of a shard from the share of its slices that its best survivor has seen; the worth of the
    store is the mean over shards. Histories of requests are drawn from the prior; in each, the number is exact.

    With `worth=DATA` a level is a share of the training data. (The deletion rate, `expected_lifetime`, is the number
    until nothing remains. It keeps growing with finer slices long after these numbers have stopped growing.)

    Args:
        shards: Number of shards, m.
        sequences: Sequences of the slices, all different.
        levels: Shares of a full store's worth, above 0 and at most 1.
        worth: The worth of a shard by the share of its slices that serves.
        prior: Probability of a request for each slice, or for each shard and slice; None for equal probabilities.
        trials: Number of histories to draw.
        seed: Seed of the random draws.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, a level is out of range, there are fewer
            than two trials, or the prior is invalid.

    Example:
        >>> from lightning_s3t.plan import cyclic
        >>> [round(found.requests.mean) for found in requests_until(5, cyclic(4, 4))]
        [6, 14]
    """
    family = check_family(sequences)
    return endurance_of(family, PlanProblem.of(len(family[0]), prior, shards=shards), levels, worth, trials, seed)


def endurance_of(
    family: Family,
    problem: PlanProblem,
    levels: Iterable[float] = LEVELS,
    worth: Worth = DATA,
    trials: int = TRIALS,
    seed: int = 0,
) -> tuple[Endurance, ...]:
    """Return how long checked sequences serve at least each level, as `requests_until`.

    Args:
        family: The sequences.
        problem: Their shards and slices, and how likely requests are.
        levels: As in `requests_until`.
        worth: As in `requests_until`.
        trials: Number of histories to draw.
        seed: Seed of the random draws.
    """
    levels = tuple(levels)
    for level in levels:
        if not 0 < level <= 1:
            raise ConfigurationError(f"The level is {level!r}. Expected a share above 0 and at most 1.")
    if trials < 2:
        raise ConfigurationError(f"Expected argument `trials` to be an integer of at least 2 but got {trials!r}.")
    shards, slices = problem.shards, problem.slices
    full = float(worth.by_depth(slices)[-1])
    lost = np.broadcast_to(worth.losses(slices), (shards, slices)).ravel() / (shards * full)
    generator = np.random.default_rng(seed)
    numbers = np.empty((len(levels), trials))
    block = max(BLOCK_NUMBERS // (shards * slices), 1)
    for start in range(0, trials, block):
        some = min(block, trials - start)
        first = by_slice(problem.places.ravel(), some, generator)
        ends = stage_ends(first.reshape(some, shards, slices), family).reshape(some, -1)
        order = ends.argsort(axis=1)
        gone = np.cumsum(lost[order], axis=1)
        for number, level in enumerate(levels):
            below = gone > 1 - level + ROUNDING
            there = np.take_along_axis(order, below.argmax(axis=1)[:, None], axis=1)
            when = np.take_along_axis(ends, there, axis=1)[:, 0]
            # where a closed-form head answers, some levels are never left
            reached = below[:, -1] & (when < NEVER)
            numbers[number, start : start + some] = np.where(reached, when, np.inf)
    return tuple(_endurance(level, row) for level, row in zip(levels, numbers, strict=True))


def _endurance(level: float, numbers: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Endurance:
    low = float(np.quantile(numbers, LOW, method="lower"))
    if not np.isfinite(numbers).all():
        return Endurance(level, Estimate(float("inf"), 0.0), low)
    error = float(numbers.std(ddof=1)) / len(numbers) ** 0.5
    return Endurance(level, Estimate(float(numbers.mean()), error), low)
