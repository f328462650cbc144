"""The planner `optimal`: the sequences that leave most, in expectation, after the coming requests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.families import Family, check_budget, check_sequences
from lightning_s3t.plan.objective.bounds import uniform_bound
from lightning_s3t.plan.objective.integer_program import EXACT_SLICES, exact_optimum
from lightning_s3t.plan.objective.landscape import Landscape, Profile, Ties
from lightning_s3t.plan.objective.lattice import Lattice
from lightning_s3t.plan.objective.sampled import SampledLandscape
from lightning_s3t.plan.planners.conditional import draw_conditionally
from lightning_s3t.plan.planners.matching import match_columns
from lightning_s3t.plan.planners.rotations import cyclic, distinct_sequences
from lightning_s3t.plan.problem import PlanProblem, Prior
from lightning_s3t.plan.units import SliceSequence

LATTICE_SLICES = 14
SEARCH_SAMPLES, JUDGING_SAMPLES = 4_000, 40_000
SWEEPS, SAMPLED_SWEEPS = 40, 3
MOVES = 12_000
HEATS = (0.1, 0.4)
IMPROVEMENT = 1e-9
COLDEST = 0.01


def optimal(
    slices: int,
    budget: int,
    seed: int = 0,
    prior: Prior | None = None,
    horizon: int | None = None,
    keep: Iterable[SliceSequence] = (),
) -> Family:
    """Returns the sequences with the largest expected length of the best surviving prefix, over the coming requests.

    The objective is the sum, over the next `horizon` requests that hit a new slice, of the expected length of the best
    prefix that is left in a shard, where requests are drawn from the prior. (A request for a slice that was asked for
    before changes nothing, so it does not count.) `assess` gives its value, an upper bound for any sequences of that
    budget, and the gap between the two.

    - Up to 5 slices the result is a proven optimum.
    - Up to 14 it is the best of a search over all sets of requested slices. It begins at cyclic rotation, at BMS, at
      conditional sampling of the same seed and at a greedy choice, and never takes a step down in the end: each of
      these is equalled or beaten.
    - Beyond, the search sees drawn histories of requests, and the result is the best of these families on other,
      independent ones.

    The search replaces one sequence after the other by the best reply to the rest, which is a longest path in the
    lattice of sets, and anneals in between. The objective is submodular in the set of sequences, so that even the
    greedy start has 1 - 1/e of the optimum (Nemhauser et al. 1978). The sequences come out by what each adds, so that a
    fit that was cut off early has the best ones.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B, up to L!.
        seed: For the draws of the search.
        prior: Probability of a request for each slice; None for equal probabilities.
        horizon: Number of requests to look ahead; None for L - 1, after which a last slice may still be left.
        keep: Sequences that are already trained: they come first, unchanged, and the rest is the best found in addition
            to them. The statements above about optima and other planners hold without them.

    Raises:
        ConfigurationError: The budget exceeds the number of sequences, the horizon is below 1, the prior is invalid, or
            a sequence to keep is not a permutation of the slices.

    Example:
        >>> optimal(4, 2)
        ((0, 1, 2, 3), (3, 2, 0, 1))
        >>> optimal(4, 2, keep=[(1, 2, 3, 0)])
        ((1, 2, 3, 0), (0, 3, 2, 1))
    """
    check_budget(slices, budget, math.factorial(slices), "optimal")
    return search(PlanProblem.of(slices, prior, horizon), budget, seed, keep)


def search(problem: PlanProblem, budget: int, seed: int = 0, keep: Iterable[SliceSequence] = ()) -> Family:
    """Searches for the sequences of `optimal`.

    Args:
        problem: The slices, how likely requests are, and how far to look ahead.
        budget: Number of sequences, B, up to L!.
        seed: For the draws of the search.
        keep: Sequences that are trained already.

    Raises:
        ConfigurationError: A sequence to keep is not a permutation of the slices.
    """
    slices = problem.slices
    draw = random.Random(f"s3t-optimal-{seed}").random
    kept = tuple(keep)[:budget]
    if kept:
        check_sequences(kept, slices, len(kept))
        return distinct_sequences(_search_beside(problem, kept, budget, draw), slices, budget)
    starts = [cyclic(slices, budget), match_columns(problem, budget), draw_conditionally(problem, budget, seed)]
    if slices <= LATTICE_SLICES:
        found = _search_lattice(problem, starts, draw)
    else:
        found = _search_samples(problem, starts, draw)
    found = distinct_sequences(found, slices, budget)
    if problem.uniform:  # all slices are equivalent: number them so that the first sequence is 0, 1, 2, ...
        names = {slice_: name for name, slice_ in enumerate(found[0])}
        found = tuple(tuple(names[slice_] for slice_ in sequence) for sequence in found)
    return found


def _search_lattice(problem: PlanProblem, starts: list[Family], draw: Ties) -> Family:
    lattice, slices, budget = Lattice(problem.probabilities, problem.horizon), problem.slices, len(starts[0])
    # the most that any sequences leave: all that was not requested
    bound = float(lattice.weights @ (slices - lattice.sizes.astype(np.float64)))
    if problem.uniform:
        bound = min(bound, uniform_bound(slices, budget, problem.horizon))
    family = _Candidate(lattice, (), draw)
    family.fill(budget)
    family.improve(SWEEPS)
    for start in starts:
        if family.value >= bound - IMPROVEMENT:
            break
        other = _Candidate(lattice, start, draw)
        other.improve(SWEEPS)
        family = max(family, other, key=lambda one: one.value + IMPROVEMENT * (one is family))
    annealing = _Annealing(lattice)
    for heat in HEATS if slices > EXACT_SLICES else ():
        if family.value >= bound - IMPROVEMENT:
            break
        other = _Candidate(lattice, annealing.improve(family.sequences, MOVES, heat, draw)[0], draw)
        other.improve(SWEEPS)
        family = max(family, other, key=lambda one: one.value + IMPROVEMENT * (one is family))
    if slices <= EXACT_SLICES and family.value < bound - IMPROVEMENT:
        optimum = exact_optimum(problem.probabilities, budget, problem.horizon)
        # keep the search's result unless it is beaten: the result then depends less on SciPy's version
        if optimum.value > family.value + 1e-6:
            family = _Candidate(lattice, optimum.sequences, draw)
    return family.by_what_each_adds()


def _search_beside(problem: PlanProblem, kept: Family, budget: int, draw: Ties) -> Family:
    landscape: Landscape
    if problem.slices <= LATTICE_SLICES:
        landscape, sweeps = Lattice(problem.probabilities, problem.horizon), SWEEPS
    else:
        landscape = SampledLandscape(problem.probabilities, problem.horizon, SEARCH_SAMPLES, int(draw() * 2**31))
        sweeps = SAMPLED_SWEEPS
    family = _Candidate(landscape, kept, draw, fixed=len(kept))
    family.fill(budget)
    family.improve(sweeps)
    return family.by_what_each_adds()


def _search_samples(problem: PlanProblem, starts: list[Family], draw: Ties) -> Family:
    budget = len(starts[0])
    seed = int(draw() * 2**31)
    family = _Candidate(SampledLandscape(problem.probabilities, problem.horizon, SEARCH_SAMPLES, seed), (), draw)
    family.fill(budget)
    family.improve(SAMPLED_SWEEPS)
    judge = SampledLandscape(problem.probabilities, problem.horizon, JUDGING_SAMPLES, seed + 1)
    families = [_Candidate(judge, sequences, draw) for sequences in (tuple(family.sequences), *starts)]
    return max(families, key=lambda one: one.value).by_what_each_adds()


class _Candidate:
    """Some sequences, of which the first `fixed` stay, and their joint value."""

    def __init__(self, landscape: Landscape, sequences: Iterable[SliceSequence], draw: Ties, fixed: int = 0) -> None:
        self.landscape, self.draw, self.fixed = landscape, draw, fixed
        self.sequences = list(sequences)
        self.profiles = [landscape.profile(sequence) for sequence in self.sequences]
        self.value = landscape.value(self._together(self.profiles))

    def fill(self, budget: int) -> None:
        """Add best replies to the sequences, up to the budget."""
        together = self._together(self.profiles)
        while len(self.sequences) < budget:
            reply = self.landscape.best_reply(together, self.draw)
            self.sequences.append(reply.sequence)
            self.profiles.append(reply.profile)
            self.value = reply.value
            together = np.maximum(together, reply.profile)

    def improve(self, sweeps: int) -> None:
        """Replaces each sequence that may move by the best reply to the rest, until that helps none of them."""
        for _ in range(sweeps):
            before = self.value
            self._sweep()
            if self.value <= before + IMPROVEMENT:
                return

    def by_what_each_adds(self) -> Family:
        """Returns the sequences, each next one adding most to those before; equal ones stay as they were."""
        left = list(zip(self.sequences, self.profiles, strict=True))[self.fixed :]
        together, ordered = self._together(self.profiles[: self.fixed]), self.sequences[: self.fixed]
        while left:
            values = [self.landscape.value(np.maximum(together, profile)) for _, profile in left]
            number = next(n for n, value in enumerate(values) if value >= max(values) - IMPROVEMENT)
            sequence, profile = left.pop(number)
            ordered.append(sequence)
            together = np.maximum(together, profile)
        return tuple(ordered)

    def _sweep(self) -> None:
        # the maximum over those after each sequence; those before are gathered on the way
        after = [self.landscape.nothing()]
        for profile in reversed(self.profiles[1:]):
            after.append(np.maximum(after[-1], profile))
        before = self._together(self.profiles[: self.fixed])
        for number in range(self.fixed, len(self.sequences)):
            others = np.maximum(before, after[-1 - number])
            sequence, profile, value = self.landscape.best_reply(others, self.draw)
            if value >= self.value - IMPROVEMENT / 1000:  # an equal one too: it leads off plateaus
                self.sequences[number], self.profiles[number] = sequence, profile
                self.value = max(self.value, value)
            before = np.maximum(before, self.profiles[number])

    def _together(self, profiles: list[Profile]) -> Profile:
        together = self.landscape.nothing()
        for profile in profiles:
            together = np.maximum(together, profile)
        return together


class _Annealing:
    """Simulated annealing on the exact landscape.

    Swapping two neighbours of a sequence changes one of its prefixes as a set, so only the weights of the sets that
    leave the old or the new prefix alone need to be looked at.

    Args:
        lattice: The landscape.
    """

    def __init__(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self._untouched: dict[int, NDArray[np.intp]] = {}

    def improve(self, sequences: Sequence[SliceSequence], moves: int, heat: float, draw: Ties) -> tuple[Family, float]:
        """Returns the best family on the way, and its value; it is never below the one that it starts from.

        Args:
            sequences: Where to start.
            moves: Number of swaps to try.
            heat: The first temperature, in multiples of the mean value of a stage.
            draw: Draws from [0, 1).
        """
        slices, weights = self.lattice.slices, self.lattice.weights
        family = [list(sequence) for sequence in sequences]
        prefixes = [self._prefixes(sequence) for sequence in sequences]
        covers = np.zeros((slices + 1, 2**slices), np.int16)
        for sets in prefixes:
            for stage in range(1, slices + 1):
                covers[stage, self._leaving_alone(sets[stage])] += 1
        value = float(((covers[1:] > 0) @ weights).sum())
        best, best_value = tuple(sequences), value
        warmest = heat * max(value, IMPROVEMENT) / (slices * len(family))
        for move in range(moves if slices > 1 else 0):
            number, stage = int(draw() * len(family)), 1 + int(draw() * (slices - 1))
            sequence, sets, cover = family[number], prefixes[number], covers[stage]
            swapped = sets[stage - 1] | 1 << sequence[stage]
            old, new = self._leaving_alone(sets[stage]), self._leaving_alone(swapped)
            cover[old] -= 1
            gain = float(weights[new] @ (cover[new] == 0)) - float(weights[old] @ (cover[old] == 0))
            temperature = warmest * (COLDEST / heat) ** (move / moves)
            if gain >= 0 or draw() < math.exp(gain / temperature):
                cover[new] += 1
                sets[stage] = swapped
                sequence[stage - 1], sequence[stage] = sequence[stage], sequence[stage - 1]
                value += gain
                if value > best_value + IMPROVEMENT:
                    best, best_value = tuple(tuple(sequence) for sequence in family), value
            else:
                cover[old] += 1
        return best, best_value

    def _prefixes(self, sequence: SliceSequence) -> list[int]:
        sets = [0]
        for slice_ in sequence:
            sets.append(sets[-1] | 1 << slice_)
        return sets

    def _leaving_alone(self, prefix: int) -> NDArray[np.intp]:
        if prefix not in self._untouched:
            found = np.zeros(1, np.intp)
            for slice_ in range(self.lattice.slices):
                if not prefix >> slice_ & 1:
                    found = np.concatenate([found, found | 1 << slice_])
            self._untouched[prefix] = found
        return self._untouched[prefix]
