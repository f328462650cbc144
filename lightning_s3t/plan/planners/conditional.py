"""Conditional sampling: the paper's random planner for a prior over the slices."""

from __future__ import annotations

import math
import random

from lightning_s3t.plan.families import Family, check_budget
from lightning_s3t.plan.planners.rotations import distinct_sequences
from lightning_s3t.plan.problem import PlanProblem, Prior
from lightning_s3t.plan.units import SliceSequence

DRAWS_PER_ORDER = 50


def conditional(slices: int, budget: int, seed: int = 0, prior: Prior | None = None) -> Family:
    """Draws different sequences, slice by slice, each of the slices left with a weight of 1 minus its prior.

    Unlikely slices tend to come first (the paper's section 3.3, and its published code). When nearly all sequences are
    requested, the last ones would hardly ever be drawn; cyclic sequences fill the rest.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B, up to L!.
        seed: Seed of the random draws.
        prior: Probability of a request for each slice; None for equal probabilities.

    Raises:
        ConfigurationError: The budget exceeds the number of sequences, or the prior is invalid.

    Example:
        >>> conditional(3, 2, prior=[0.9, 0.05, 0.05])
        ((1, 2, 0), (2, 0, 1))
    """
    check_budget(slices, budget, math.factorial(slices), "conditional")
    return draw_conditionally(PlanProblem.of(slices, prior), budget, seed)


def draw_conditionally(problem: PlanProblem, budget: int, seed: int) -> Family:
    """Draws the sequences of `conditional`.

    Args:
        problem: The slices, and how likely requests are.
        budget: Number of sequences, B, up to L!.
        seed: Seed of the random draws.
    """
    weights = [1 - float(probability) for probability in problem.probabilities]
    generator = random.Random(f"s3t-conditional-{seed}")
    found: dict[SliceSequence, None] = {}
    for _ in range(DRAWS_PER_ORDER * budget):
        if len(found) == budget:
            break
        found[_draw(weights, generator)] = None
    return distinct_sequences(found, problem.slices, budget)


def _draw(weights: list[float], generator: random.Random) -> SliceSequence:
    left, sequence = list(range(len(weights))), []
    while left:
        threshold = generator.random() * sum(weights[slice_] for slice_ in left)
        for slice_ in left:
            threshold -= weights[slice_]
            if threshold < 0:
                break
        sequence.append(slice_)  # the last one, where rounding or a prior of 1 leaves nothing to draw from
        left.remove(slice_)
    return tuple(sequence)
