"""The best sequences, or as many of a planner's sequences, as a limit on the training cost allows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import numpy as np

from lightning_s3t.plan.cost import Limit
from lightning_s3t.plan.families import Family
from lightning_s3t.plan.objective.lattice import Lattice
from lightning_s3t.plan.planners.optimal import LATTICE_SLICES, search
from lightning_s3t.plan.planners.rotations import cyclic
from lightning_s3t.plan.problem import PlanProblem, Prior
from lightning_s3t.plan.stage_rules import DataMode, EpochRule
from lightning_s3t.plan.units import SliceSequence

GAIN = 1e-9
REBUILDS = 30


def optimal_within(
    slices: int,
    units: int | None = None,
    fine_tunes: float | None = None,
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
    seed: int = 0,
    prior: Prior | None = None,
    horizon: int | None = None,
    keep: Iterable[SliceSequence] = (),
) -> Family:
    """Returns the best sequences found whose training costs no more than a limit for each shard.

    Sequences with a common prefix share units, so that for one cost there may be few sequences that differ from the
    start, or more of them that part late. Up to 14 slices, sequences are added by their gain per cost, each branching
    off existing ones where the gain is largest, and branches are removed and rebuilt; the result is at least as good as
    `optimal` and rotation with as many sequences as the cost allows. Beyond 14 slices it is the better of those two.

    Args:
        slices: Number of slices, L.
        units: The largest number of units per shard.
        fine_tunes: The largest number of samples per shard, in multiples of one full fine-tune.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
        seed: For the draws of the search.
        prior: Probability of a request for each slice; None for equal probabilities.
        horizon: Number of requests to look ahead; None for L - 1.
        keep: Sequences that are already trained: as many as the limit allows come first, unchanged, and the rest is
            added to them (up to 14 slices).

    Raises:
        ConfigurationError: Not exactly one limit is given, or it does not pay for one sequence.

    Example:
        >>> from lightning_s3t.plan import cost_of
        >>> found = optimal_within(4, units=10)
        >>> len(found), cost_of(found).units
        (3, 10)
    """
    problem = PlanProblem.of(slices, prior, horizon)
    return search_within(problem, Limit.of(slices, units, fine_tunes, data, epochs), seed, keep)


def search_within(problem: PlanProblem, limit: Limit, seed: int = 0, keep: Iterable[SliceSequence] = ()) -> Family:
    """Searches for the sequences of `optimal_within`.

    Args:
        problem: The slices, how likely requests are, and how far to look ahead.
        limit: The limit on the sequences' cost.
        seed: For the draws of the search.
        keep: Sequences that are trained already.
    """
    small = problem.slices <= LATTICE_SLICES
    draw = random.Random(f"s3t-cost-{seed}").random
    kept = _paid_for(keep, limit)
    if kept:
        return _grow(kept, Lattice(problem.probabilities, problem.horizon), limit) if small else kept
    whole = as_many_as(lambda budget: search(problem, budget, seed), limit)
    if not small:
        return whole
    lattice = Lattice(problem.probabilities, problem.horizon)
    rotations = as_many_as(lambda budget: cyclic(problem.slices, budget), limit)
    families = [_grow(start, lattice, limit) for start in (whole, rotations, ())]
    best = max(families, key=lambda sequences: _value(lattice, sequences))
    for _ in range(REBUILDS if len(best) > 1 else 0):
        other = _grow([sequence for sequence in best if draw() < 0.6], lattice, limit)
        if _value(lattice, other) > _value(lattice, best) + GAIN:
            best = other
    return best


def as_many_as(planner: Callable[[int], Family], limit: Limit) -> Family:
    """Returns as many of a planner's sequences as a limit pays for.

    Args:
        planner: Gives the sequences for a budget.
        limit: The limit on their cost.

    Example:
        >>> as_many_as(lambda budget: cyclic(3, budget), Limit.of(slices=3, units=6))
        ((0, 1, 2), (1, 2, 0))
    """
    # the limit allows at least this many sequences (no common prefixes); common prefixes may allow more
    every = math.factorial(limit.slices)
    budget = min(max(int(limit.most // limit.prices.sum()), 1), every)
    found = planner(budget)
    while budget < every:
        more = planner(budget + 1)
        if limit.price(more) > limit.most:
            break
        found, budget = more, budget + 1
    return found


def _paid_for(sequences: Iterable[SliceSequence], limit: Limit) -> Family:
    found: list[SliceSequence] = []
    for sequence in sequences:
        if limit.price([*found, sequence]) > limit.most:
            break
        found.append(sequence)
    return tuple(found)


def _value(lattice: Lattice, sequences: Iterable[SliceSequence]) -> float:
    return lattice.value(np.max([lattice.profile(sequence) for sequence in sequences], axis=0))


def _grow(sequences: Iterable[SliceSequence], lattice: Lattice, limit: Limit) -> Family:
    found = list(sequences)
    together = lattice.nothing()
    for sequence in found:
        together = np.maximum(together, lattice.profile(sequence))
    spent = limit.price(found)
    while True:
        nodes = {sequence[:stage] for sequence in found for stage in range(lattice.slices)} | {()}
        best: tuple[float, SliceSequence] | None = None
        for sequence, gain, node in lattice.best_completions(together, sorted(nodes)):
            price = float(limit.prices[len(node) :].sum())
            if spent + price <= limit.most and gain > GAIN and (best is None or gain / price > best[0] + GAIN):
                best = (gain / price, sequence)
        if best is None:
            return tuple(found)
        found.append(best[1])
        together = np.maximum(together, lattice.profile(best[1]))
        spent = limit.price(found)
