"""Iterative bipartite matching (BMS): the paper's planner for a prior over the slices."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.families import Family, check_budget
from lightning_s3t.plan.planners.rotations import distinct_sequences
from lightning_s3t.plan.problem import PlanProblem, Prior
from lightning_s3t.plan.units import SliceSequence

SCORED_REQUESTS = 100  # the exponent in the score of the paper's published code

# smaller than any relevant difference of scores: ties go to rotations, in every version of SciPy
ROTATION_BONUS = 1e-9
UNUSED_FIRST = 1e3
FORBIDDEN = -1e9


def bms(slices: int, budget: int, prior: Prior | None = None) -> Family:
    """Builds L sequences column by column, each column a matching of maximum weight between sequences and slices.

    The k-th column may give each sequence any slice that it does not have yet, each slice once. The weight of a slice
    is its contribution to the sequence's score, sum over n of n * (1 - prior of the first n slices)^100, which is high
    if unlikely slices come first (the paper's section 3.3, and its published code). So every column is a permutation,
    and the first slices are all different.

    Below L sequences, those with the best scores are taken. Beyond L, further rounds of L sequences are built in the
    same way, in which prefixes that are less used go before scores.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B, up to L!.
        prior: Probability of a request for each slice; None for equal probabilities.

    Raises:
        ConfigurationError: The budget exceeds the number of sequences, or the prior is invalid.

    Example:
        >>> bms(4, 4, prior=[0.4, 0.3, 0.2, 0.1])
        ((3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2), (0, 1, 2, 3))
    """
    check_budget(slices, budget, math.factorial(slices), "bms")
    return match_columns(PlanProblem.of(slices, prior), budget)


def match_columns(problem: PlanProblem, budget: int) -> Family:
    """Builds the sequences of `bms`.

    Args:
        problem: The slices, and how likely requests are.
        budget: Number of sequences, B, up to L!.
    """
    slices, probabilities = problem.slices, problem.probabilities
    used: Counter[SliceSequence] = Counter()
    sequences: list[SliceSequence] = []
    for _ in range(-(-budget // slices)):
        found = _latin_square(probabilities, used)
        # stable: equal scores stay in the order of their first slices
        sequences += sorted(found, key=lambda sequence: -_score(sequence, probabilities))
        used.update(sequence[:length] for sequence in found for length in range(1, slices + 1))
    return distinct_sequences(sequences, slices, budget)


def column_weights(prefixes: list[SliceSequence], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each slice would add to each sequence's score, scaled to at most 1; impossible slices are very low.

    Args:
        prefixes: The sequences so far, all of one length.
        probabilities: By slice.

    Returns:
        Shape (sequences, L).
    """
    length = len(prefixes[0]) + 1
    so_far = np.array([probabilities[list(prefix)].sum() for prefix in prefixes])
    # the score so far is the same for every slice of a row: without it, small additions are not rounded away
    weights = length * np.clip(1 - so_far[:, None] - probabilities[None, :], 0, None) ** SCORED_REQUESTS
    possible = np.array([[slice_ not in prefix for slice_ in range(len(probabilities))] for prefix in prefixes])
    most = weights[possible].max()
    return np.where(possible, weights / most if most > 0 else 0.0, FORBIDDEN)


def _latin_square(probabilities: NDArray[np.float64], used: Counter[SliceSequence]) -> list[SliceSequence]:
    from scipy.optimize import linear_sum_assignment

    slices = len(probabilities)
    prefixes: list[SliceSequence] = [(slice_,) for slice_ in range(slices)]
    for _ in range(slices - 1):
        weights = column_weights(prefixes, probabilities)
        for row, prefix in enumerate(prefixes):
            weights[row, (prefix[-1] + 1) % slices] += ROTATION_BONUS
            if used:
                times = [used.get((*prefix, slice_), 0) for slice_ in range(slices)]
                weights[row] -= UNUSED_FIRST * np.array(times)
        _, columns = linear_sum_assignment(weights, maximize=True)
        prefixes = [(*prefix, int(slice_)) for prefix, slice_ in zip(prefixes, columns, strict=True)]
    return prefixes


def _score(sequence: SliceSequence, probabilities: NDArray[np.float64]) -> float:
    alive = np.clip(1 - np.cumsum(probabilities[list(sequence)]), 0, None)
    return float(np.arange(1, len(sequence) + 1) @ alive**SCORED_REQUESTS)
