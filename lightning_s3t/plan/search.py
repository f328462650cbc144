"""The planner `optimal`: the orders that leave most, in expectation, after the coming requests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np

from lightning_s3t.plan.annealing import Annealing
from lightning_s3t.plan.bound import uniform_bound
from lightning_s3t.plan.checks import check_budget, check_sequences
from lightning_s3t.plan.exact import EXACT_SLICES, exact_optimum
from lightning_s3t.plan.lattice import Landscape, Lattice, Profile, Ties
from lightning_s3t.plan.matching import bms
from lightning_s3t.plan.prior import Prior, Probabilities, check_prior
from lightning_s3t.plan.rotations import cyclic, distinct_orders
from lightning_s3t.plan.sampled import SampledLandscape
from lightning_s3t.plan.sampling import conditional
from lightning_s3t.plan.units import SliceSequence
from lightning_s3t.plan.valuation import default_horizon, is_uniform

LATTICE_SLICES = 14
SEARCH_SAMPLES, JUDGING_SAMPLES = 4_000, 40_000
SWEEPS, SAMPLED_SWEEPS = 40, 3
MOVES = 12_000
HEATS = (0.1, 0.4)
IMPROVEMENT = 1e-9


def optimal(
    slices: int,
    budget: int,
    seed: int = 0,
    prior: Prior | None = None,
    horizon: int | None = None,
    keep: Iterable[SliceSequence] = (),
) -> tuple[SliceSequence, ...]:
    """Returns the orders with the largest expected length of the best surviving prefix, over the coming requests.

    The objective is the sum, over the next `horizon` requests that hit a slice anew, of the expected length of the
    best prefix that is left in a shard, where requests are drawn from the prior. (A request for a slice that was asked
    for before changes nothing, so it does not count.) `assess` gives its value, an upper bound for any orders of that
    budget, and the gap between the two.

    - Up to 5 slices the result is a proven optimum.
    - Up to 14 it is the best of a search over all sets of requested slices. It begins at cyclic rotation, at BMS, at
      conditional sampling of the same seed and at a greedy choice, and never takes a step down in the end: each of
      these is equalled or beaten.
    - Beyond, the search sees drawn histories of requests, and the result is the best of these families on other,
      independent ones.

    The search replaces one order after the other by the best reply to the rest, which is a longest path in the lattice
    of sets, and anneals in between. The objective is submodular in the set of orders, so that even the greedy start
    has 1 - 1/e of the optimum (Nemhauser et al. 1978). The orders come out by what each adds, so that a fit that was
    cut off early has the best ones.

    Args:
        slices: Number of slices, L.
        budget: Number of orders, B, up to L!.
        seed: For the draws of the search.
        prior: Probability that a request is for each slice; None for equal ones.
        horizon: Number of requests to look ahead; None for L - 1, after which a last slice may still be left.
        keep: Orders that are trained already: they come first, as they are, and the rest is the best found beside
            them. What is said above of optima and of other planners holds without them.

    Raises:
        ConfigurationError: There are not so many orders, the horizon is below 1, the prior is off, or an order to keep
            is no order of the slices.

    Example:
        >>> optimal(4, 2)
        ((0, 1, 2, 3), (3, 2, 0, 1))
        >>> optimal(4, 2, keep=[(1, 2, 3, 0)])
        ((1, 2, 3, 0), (0, 3, 2, 1))
    """
    check_budget(slices, budget, math.factorial(slices), "optimal")
    probabilities, horizon = check_prior(prior, slices), default_horizon(slices, horizon)
    draw = random.Random(f"s3t-optimal-{seed}").random
    kept = tuple(keep)[:budget]
    if kept:
        check_sequences(kept, slices, len(kept))
        return distinct_orders(_search_beside(probabilities, horizon, kept, budget, draw), slices, budget)
    starts = [cyclic(slices, budget), bms(slices, budget, prior), conditional(slices, budget, seed, prior)]
    if slices <= LATTICE_SLICES:
        found = _search_lattice(probabilities, horizon, starts, draw)
    else:
        found = _search_samples(probabilities, horizon, starts, draw)
    found = distinct_orders(found, slices, budget)
    if is_uniform(probabilities):  # all slices are alike: name them so that the first order is 0, 1, 2, ...
        names = {slice_: name for name, slice_ in enumerate(found[0])}
        found = tuple(tuple(names[slice_] for slice_ in order) for order in found)
    return found


def _search_lattice(
    probabilities: Probabilities, horizon: int, starts: list[tuple[SliceSequence, ...]], draw: Ties
) -> tuple[SliceSequence, ...]:
    lattice, slices, budget = Lattice(probabilities, horizon), len(probabilities), len(starts[0])
    # the most that any orders leave: all that was not requested
    bound = float(lattice.weights @ (slices - lattice.sizes.astype(np.float64)))
    if is_uniform(probabilities):
        bound = min(bound, uniform_bound(slices, budget, horizon))
    family = _Family(lattice, (), draw)
    family.fill(budget)
    family.improve(SWEEPS)
    for start in starts:
        if family.value >= bound - IMPROVEMENT:
            break
        other = _Family(lattice, start, draw)
        other.improve(SWEEPS)
        family = max(family, other, key=lambda one: one.value + IMPROVEMENT * (one is family))
    annealing = Annealing(lattice)
    for heat in HEATS if slices > EXACT_SLICES else ():
        if family.value >= bound - IMPROVEMENT:
            break
        other = _Family(lattice, annealing.improve(family.orders, MOVES, heat, draw)[0], draw)
        other.improve(SWEEPS)
        family = max(family, other, key=lambda one: one.value + IMPROVEMENT * (one is family))
    if slices <= EXACT_SLICES and family.value < bound - IMPROVEMENT:
        optimum = exact_optimum(probabilities, budget, horizon)
        # what the search has found stays unless it is beaten: that makes the result depend less on SciPy's release
        if optimum.value > family.value + 1e-6:
            family = _Family(lattice, optimum.sequences, draw)
    return family.by_what_each_adds()


def _search_beside(
    probabilities: Probabilities, horizon: int, kept: tuple[SliceSequence, ...], budget: int, draw: Ties
) -> tuple[SliceSequence, ...]:
    landscape: Landscape
    if len(probabilities) <= LATTICE_SLICES:
        landscape, sweeps = Lattice(probabilities, horizon), SWEEPS
    else:
        landscape = SampledLandscape(probabilities, horizon, SEARCH_SAMPLES, int(draw() * 2**31))
        sweeps = SAMPLED_SWEEPS
    family = _Family(landscape, kept, draw, fixed=len(kept))
    family.fill(budget)
    family.improve(sweeps)
    return family.by_what_each_adds()


def _search_samples(
    probabilities: Probabilities, horizon: int, starts: list[tuple[SliceSequence, ...]], draw: Ties
) -> tuple[SliceSequence, ...]:
    budget = len(starts[0])
    seed = int(draw() * 2**31)
    family = _Family(SampledLandscape(probabilities, horizon, SEARCH_SAMPLES, seed), (), draw)
    family.fill(budget)
    family.improve(SAMPLED_SWEEPS)
    judge = SampledLandscape(probabilities, horizon, JUDGING_SAMPLES, seed + 1)
    families = [_Family(judge, orders, draw) for orders in (tuple(family.orders), *starts)]
    return max(families, key=lambda one: one.value).by_what_each_adds()


class _Family:
    """Some orders, of which the first `fixed` stay, and what they are worth together."""

    def __init__(self, landscape: Landscape, orders: Iterable[SliceSequence], draw: Ties, fixed: int = 0) -> None:
        self.landscape, self.draw, self.fixed = landscape, draw, fixed
        self.orders = list(orders)
        self.profiles = [landscape.profile(order) for order in self.orders]
        self.value = landscape.value(self._together(self.profiles))

    def fill(self, budget: int) -> None:
        """Adds best replies to what is there, up to the budget."""
        together = self._together(self.profiles)
        while len(self.orders) < budget:
            self.orders.append(self.landscape.best_reply(together, self.draw))
            self.profiles.append(self.landscape.profile(self.orders[-1]))
            together = np.maximum(together, self.profiles[-1])
        self.value = self.landscape.value(together)

    def improve(self, sweeps: int) -> None:
        """Replaces each order that may move by the best reply to the rest, until that helps none of them."""
        for _ in range(sweeps):
            before = self.value
            self._sweep()
            if self.value <= before + IMPROVEMENT:
                return

    def by_what_each_adds(self) -> tuple[SliceSequence, ...]:
        """Returns the orders, each next one adding most to those before; equal ones stay as they were."""
        left = list(zip(self.orders, self.profiles, strict=True))[self.fixed :]
        together, ordered = self._together(self.profiles[: self.fixed]), self.orders[: self.fixed]
        while left:
            values = [self.landscape.value(np.maximum(together, profile)) for _, profile in left]
            number = next(n for n, value in enumerate(values) if value >= max(values) - IMPROVEMENT)
            order, profile = left.pop(number)
            ordered.append(order)
            together = np.maximum(together, profile)
        return tuple(ordered)

    def _sweep(self) -> None:
        # the maximum over those after each order; those before are gathered on the way
        after = [self.landscape.nothing()]
        for profile in reversed(self.profiles[1:]):
            after.append(np.maximum(after[-1], profile))
        before = self._together(self.profiles[: self.fixed])
        for number in range(self.fixed, len(self.orders)):
            others = np.maximum(before, after[-1 - number])
            order = self.landscape.best_reply(others, self.draw)
            profile = self.landscape.profile(order)
            value = self.landscape.value(np.maximum(others, profile))
            if value >= self.value - IMPROVEMENT / 1000:  # an equal one too: it leads off plateaus
                self.orders[number], self.profiles[number] = order, profile
                self.value = max(self.value, value)
            before = np.maximum(before, self.profiles[number])

    def _together(self, profiles: list[Profile]) -> Profile:
        together = self.landscape.nothing()
        for profile in profiles:
            together = np.maximum(together, profile)
        return together
