"""Upper bounds on the objective for any sequences of a budget."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.objective.lattice import Lattice
from lightning_s3t.plan.problem import Probabilities

STEPS = 150
PATIENCE = 8
SHORTER = 0.7


def uniform_bound(slices: int, budget: int, horizon: int) -> float:
    """Returns a bound on the objective of `optimal` for equal probabilities, in closed form.

    Consider stage k after t requests that hit a new slice. It survives the requested sets T of t slices that are
    subsets of the complement of one of the B prefixes; complements have c = L - k slices. Let N be the number of sets
    T, S1 the sum of how many each complement holds, and S2 the same for the intersections of pairs.

    - S1 = B * C(c, t), and at most min(N, S1) sets are covered.
    - The complements have B*c slices in all, so in the most even case each of the L slices is in q or q + 1
      complements, which gives the least total size of the pairs' intersections. C(size, t) is convex in the size, so S2
      is smallest when all pairs intersect equally.
    - A set that is in d >= 1 complements is counted d times in S1 and d(d-1)/2 times in S2, and 1 <= d - (2/B) *
      d(d-1)/2 because (d-1)(1 - d/B) >= 0 for d <= B. So at most S1 - (2/B) * S2 sets are covered.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B.
        horizon: Number of requests to look ahead, counting those that hit a new slice.

    Example:
        >>> round(uniform_bound(6, 2, horizon=5), 4), round(uniform_bound(6, 6, horizon=5), 4)
        (8.5667, 13.1)
    """
    pairs = math.comb(budget, 2)
    bound = 0.0
    for stage in range(1, slices):
        complement = slices - stage
        often, more_often = divmod(budget * complement, slices)
        overlap = more_often * math.comb(often + 1, 2) + (slices - more_often) * math.comb(often, 2)
        for requests in range(1, min(horizon, complement) + 1):
            first = budget * math.comb(complement, requests)
            covered = float(min(math.comb(slices, requests), first))
            if pairs:
                size, larger = divmod(overlap, pairs)
                second = larger * math.comb(size + 1, requests) + (pairs - larger) * math.comb(size, requests)
                covered = min(covered, first - 2 * second / budget)
            bound += covered / math.comb(slices, requests)
    return bound


def everything_bound(probabilities: Probabilities, horizon: int) -> float:
    """Return the objective of all L! sequences together, which keep every slice that was not requested.

    Args:
        probabilities: Of a request for each slice, shape (L,).
        horizon: Number of requests to look ahead, counting those that hit a new slice.

    Example:
        >>> everything_bound(np.array([0.5, 0.3, 0.2]), horizon=2)
        3.0
    """
    slices, asked = len(probabilities), int((probabilities > 0).sum())
    return float(sum(slices - requests for requests in range(1, min(horizon, asked) + 1)))


def lagrangian_bound(probabilities: Probabilities, budget: int, horizon: int, target: float) -> float:
    """Returns a bound on the objective of `optimal` for any prior, by Lagrangian relaxation.

    The objective is the sum, over stages k and requested sets T, of the weight w(T) where stage k survives T. Give each
    (k, T) a price from 0 to w(T). Then it is at most the sum of w(T) - price, plus the price once for every sequence
    whose prefix of k slices is disjoint from T. Summed over the stages, no sequence collects more than the longest path
    in the lattice of sets, so B sequences collect at most B times that. Alternatively, stage by stage, B sequences have
    at most B different prefixes, which collect at most as much as the B best sets of k slices. Both bounds hold for any
    prices; subgradient steps search for good ones.

    Args:
        probabilities: Of a request for each slice, shape (L,); L up to about 14.
        budget: Number of sequences, B.
        horizon: Number of requests to look ahead, counting those that hit a new slice.
        target: A value that some sequences reach, for the length of the steps.
    """
    lattice = Lattice(probabilities, horizon)
    return min(_descend(lattice, budget, target, by_paths) for by_paths in (True, False))


def _descend(lattice: Lattice, budget: int, target: float, by_paths: bool) -> float:
    stages = np.arange(1, lattice.slices + 1)[:, None]
    weights = np.where(stages <= lattice.slices - lattice.sizes, lattice.weights, 0.0)
    prices, best, length, since = weights / 2, math.inf, 1.0, 0
    for _ in range(STEPS):
        collected, covers = (_paths if by_paths else _best_sets)(lattice, prices, budget)
        bound = float((weights - prices).sum()) + collected
        since = 0 if bound < best else since + 1
        best = min(best, bound)
        if since == PATIENCE:
            length, since = length * SHORTER, 0
        slope = np.where(weights > 0, covers - 1.0, 0.0)
        slope[((prices <= 0) & (slope > 0)) | ((prices >= weights) & (slope < 0))] = 0
        steepness = float((slope * slope).sum())
        if steepness == 0 or bound <= target:
            break
        prices = np.clip(prices - length * (bound - target) / steepness * slope, 0, weights)
    return best


def _paths(lattice: Lattice, prices: NDArray[np.float64], budget: int) -> tuple[float, NDArray[np.int64]]:
    sequence, collected = lattice.longest_path(prices.copy())
    stages = np.arange(1, lattice.slices + 1)[:, None]
    return budget * collected, budget * (lattice.profile(sequence) >= stages).astype(np.int64)


def _best_sets(lattice: Lattice, prices: NDArray[np.float64], budget: int) -> tuple[float, NDArray[np.float64]]:
    # backwards, an array over all sets is by complement
    gains = lattice.sum_over_subsets(prices.copy())[:, ::-1]
    chosen, collected = np.zeros_like(gains), 0.0
    for stage in range(1, lattice.slices + 1):
        level = np.flatnonzero(lattice.sizes == stage)
        best = level[np.argsort(-gains[stage - 1, level], kind="stable")[:budget]]
        chosen[stage - 1, best] = 1
        collected += float(gains[stage - 1, best].sum())
    return collected, lattice.sum_over_subsets(chosen)[:, ::-1]
