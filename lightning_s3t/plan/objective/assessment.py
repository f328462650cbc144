"""The value of given sequences by the objective of `optimal`, and how much better any others could be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lightning_s3t.plan.estimate import Estimate
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.objective.bounds import everything_bound, lagrangian_bound, uniform_bound
from lightning_s3t.plan.objective.integer_program import EXACT_SLICES, exact_optimum
from lightning_s3t.plan.objective.lattice import distinct_request_sets, lengths_left
from lightning_s3t.plan.objective.sampled import SampledLandscape
from lightning_s3t.plan.problem import PlanProblem, Prior

LISTED_SLICES = 20  # a million sets
SAMPLES = 100_000
PRICED_SLICES = 12
EQUAL = 1e-6


@dataclass(frozen=True)
class Assessment:
    """The value of some sequences.

    Attributes:
        value: Expected length of the best surviving prefix of a shard, summed over the coming requests.
        standard_error: Of the value; 0 where it is exact.
        bound: An upper bound for any sequences of that budget.
    """

    value: float
    standard_error: float
    bound: float

    @property
    def gap(self) -> float:
        """The gap between bound and value, as a share of the value."""
        return max(self.bound / self.value - 1, 0.0) if self.value > 0 else 0.0

    @property
    def proven(self) -> bool:
        """Whether no sequences are better: the value is exact and reaches the bound."""
        return self.standard_error == 0 and self.value >= self.bound - EQUAL


def assess(
    sequences: Iterable[Iterable[int]], prior: Prior | None = None, horizon: int | None = None, seed: int = 0
) -> Assessment:
    """Returns the objective of `optimal` for given sequences, and an upper bound for the same number of any sequences.

    - The value is exact up to 20 slices, an estimate from drawn histories beyond.
    - The bound is the optimum itself up to 5 slices. Beyond, it is a closed form for equal probabilities
      (`uniform_bound`), a Lagrangian relaxation for a prior up to 12 slices, and otherwise the value of all L!
      sequences together.

    Args:
        sequences: Sequences of the slices, all different.
        prior: Probability of a request for each slice; None for equal probabilities.
        horizon: Number of requests to look ahead; None for L - 1.
        seed: For the draws beyond 20 slices.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, the horizon is below 1, or the prior is
            invalid.

    Example:
        >>> found = assess([(0, 1, 2, 3), (2, 3, 0, 1)])
        >>> round(found.value, 4), round(found.bound, 4), found.proven
        (4.1667, 4.1667, True)
    """
    family = check_family(sequences)
    return assess_family(family, PlanProblem.of(len(family[0]), prior, horizon), seed)


def assess_family(family: Family, problem: PlanProblem, seed: int = 0) -> Assessment:
    """Assesses sequences that were checked, as `assess`.

    Args:
        family: The sequences.
        problem: Their slices, and how likely requests are.
        seed: For the draws beyond 20 slices.
    """
    value = objective_of(family, problem, seed)
    return Assessment(value.mean, value.standard_error, _bound(problem, len(family), value.mean))


def objective(
    sequences: Iterable[Iterable[int]], prior: Prior | None = None, horizon: int | None = None, seed: int = 0
) -> Estimate:
    """Returns the expected length of a shard's best surviving prefix, summed over the coming requests.

    Requests are drawn from the prior. Only those that hit a new slice count; others change nothing. Up to 20 slices the
    value is exact, beyond it is estimated from drawn histories.

    Args:
        sequences: Sequences of the slices, all different.
        prior: Probability of a request for each slice; None for equal probabilities.
        horizon: Number of requests to look ahead; None for L - 1.
        seed: For the draws beyond 20 slices.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, the horizon is below 1, or the prior is
            invalid.

    Example:
        >>> round(objective([(0, 1, 2, 3), (3, 2, 1, 0)]).mean, 4)
        4.1667
    """
    family = check_family(sequences)
    return objective_of(family, PlanProblem.of(len(family[0]), prior, horizon), seed)


def objective_of(family: Family, problem: PlanProblem, seed: int = 0) -> Estimate:
    """Returns the `objective` of sequences that were checked.

    Args:
        family: The sequences.
        problem: Their slices, and how likely requests are.
        seed: For the draws beyond 20 slices.
    """
    probabilities, horizon = problem.probabilities, problem.horizon
    if len(probabilities) <= LISTED_SLICES:
        left = lengths_left(family[0])
        for sequence in family[1:]:
            left = np.maximum(left, lengths_left(sequence))
        return Estimate(float(distinct_request_sets(probabilities, horizon) @ left), 0.0)
    landscape = SampledLandscape(probabilities, horizon, SAMPLES, seed)
    profile = landscape.profile(family[0])
    for sequence in family[1:]:
        profile = np.maximum(profile, landscape.profile(sequence))
    return Estimate(landscape.value(profile), landscape.standard_error(profile))


def _bound(problem: PlanProblem, budget: int, value: float) -> float:
    slices, probabilities, horizon = problem.slices, problem.probabilities, problem.horizon
    everything = everything_bound(probabilities, horizon)
    if value >= everything - EQUAL:
        return everything
    if problem.uniform:
        bound = min(everything, uniform_bound(slices, budget, horizon))
        if slices > EXACT_SLICES or value >= bound - EQUAL:
            return bound
    if slices <= EXACT_SLICES:
        return exact_optimum(probabilities, budget, horizon).value
    if slices <= PRICED_SLICES:
        return min(everything, lagrangian_bound(probabilities, budget, horizon, value))
    return everything
