"""The exact landscape of the search, and arrays over all sets of slices: up to about 14, or 20 without a search.

A set is a number with one bit per slice, so an array over all sets has 2**L entries, and entry 5 is the set of slices 0
and 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.objective.landscape import Profile, Reply, Ties
from lightning_s3t.plan.problem import Probabilities
from lightning_s3t.plan.units import SliceSequence

ALMOST_SURE = 1 - 1e-12
TIE = 1e-12


class Lattice:
    """The landscape over all sets of requested slices.

    Args:
        probabilities: Of a request for each slice, shape (L,).
        horizon: Number of requests to look ahead, counting those that hit a new slice.
    """

    def __init__(self, probabilities: Probabilities, horizon: int) -> None:
        self.slices = len(probabilities)
        self.weights = distinct_request_sets(probabilities, horizon)
        self.sizes = set_sizes(self.slices)
        self._levels = [np.flatnonzero(self.sizes == size) for size in range(self.slices + 1)]
        bits = 1 << np.arange(self.slices)
        self._parents = [
            (level[:, None] ^ bits)[(level[:, None] & bits) != 0].reshape(len(level), size)
            for size, level in enumerate(self._levels)
        ]

    def nothing(self) -> Profile:
        """Returns the profile of no sequences: length 0 whatever comes."""
        return np.zeros(2**self.slices, np.int8)

    def profile(self, sequence: SliceSequence) -> Profile:
        """Returns the length that is left of a sequence, by set of requested slices.

        Args:
            sequence: A permutation of the slices.
        """
        return lengths_left(sequence)

    def value(self, profile: Profile) -> float:
        """Returns the objective.

        Args:
            profile: Of some sequences.
        """
        return float(self.weights @ profile)

    def best_reply(self, profile: Profile, ties: Ties) -> Reply:
        """Return a sequence that adds most to others; no other adds more.

        A sequence is a path from the empty set of slices to the full one. Its k-th set S adds the weight of those
        requested sets T that are disjoint from S and leave the others less than k slices; this depends only on S, so
        the best sequence is a longest path.

        Args:
            profile: Profile of the other sequences.
            ties: Draws from [0, 1), to choose among equal ones.
        """
        stages = np.arange(1, self.slices + 1)[:, None]
        sequence = self.longest_path(np.where(profile < stages, self.weights, 0.0), ties)[0]
        own = self.profile(sequence)
        return Reply(sequence, own, self.value(np.maximum(profile, own)))

    def longest_path(self, prizes: NDArray[np.float64], ties: Ties | None = None) -> tuple[SliceSequence, float]:
        """Returns the sequence that collects most, and how much.

        Args:
            prizes: By stage and requested set, shape (L, 2**L): the value of that stage's prefix not being hit by that
                set. It is overwritten.
            ties: Draws from [0, 1), to choose among equal ones; None for the first.
        """
        gains = self.sum_over_subsets(prizes)
        full = 2**self.slices - 1
        best = np.zeros(2**self.slices)
        for stage in range(1, self.slices + 1):
            level = self._levels[stage]
            best[level] = best[self._parents[stage]].max(axis=1) + gains[stage - 1, full - level]
        sequence, here = [], full
        while here:
            last = [slice_ for slice_ in range(self.slices) if here >> slice_ & 1]
            values = best[[here ^ (1 << slice_) for slice_ in last]]
            equal = np.flatnonzero(values >= values.max() - TIE)
            slice_ = last[equal[int(ties() * len(equal)) if ties else 0]]
            sequence.append(slice_)
            here ^= 1 << slice_
        return tuple(reversed(sequence)), float(best[full])

    def best_completions(
        self, profile: Profile, prefixes: list[SliceSequence]
    ) -> Iterator[tuple[SliceSequence, float, SliceSequence]]:
        """Yields, for each prefix, the sequence that begins with it and adds most to others.

        Args:
            profile: Profile of the other sequences.
            prefixes: Beginnings of sequences.

        Yields:
            The sequence, the amount that its stages after the prefix add to the objective, and the prefix.
        """
        stages = np.arange(1, self.slices + 1)[:, None]
        gains = self.sum_over_subsets(np.where(profile < stages, self.weights, 0.0))
        full = 2**self.slices - 1
        # the most that can be collected after each set: the longest path from it to the full one
        ahead = np.zeros(2**self.slices)
        for stage in range(self.slices, 0, -1):
            level = self._levels[stage]
            with_own = ahead[level] + gains[stage - 1, full - level]
            np.maximum.at(ahead, self._parents[stage].ravel(), np.repeat(with_own, stage))
        for prefix in prefixes:
            here, sequence = sum(1 << slice_ for slice_ in prefix), list(prefix)
            while here != full:
                left = [slice_ for slice_ in range(self.slices) if not here >> slice_ & 1]
                after = [here | 1 << slice_ for slice_ in left]
                values = ahead[after] + gains[len(sequence), [full - set_ for set_ in after]]
                choice = int(np.flatnonzero(values >= values.max() - TIE)[0])
                sequence.append(left[choice])
                here = after[choice]
            yield tuple(sequence), float(ahead[sum(1 << slice_ for slice_ in prefix)]), prefix

    def sum_over_subsets(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Replace each set's value with the sum over all its subsets, in place; return the array.

        Args:
            values: Shape (rows, 2**L); rows are independent.
        """
        for slice_ in range(self.slices):
            with_and_without = values.reshape(len(values), -1, 2, 2**slice_)
            with_and_without[:, :, 1] += with_and_without[:, :, 0]
        return values


@lru_cache(maxsize=4)
def set_sizes(slices: int) -> NDArray[np.int8]:
    """Returns the number of slices in each set.

    Args:
        slices: Number of slices, L.

    Returns:
        Shape (2**L,), read-only.

    Example:
        >>> set_sizes(2).tolist()
        [0, 1, 1, 2]
    """
    sizes = np.zeros(1, np.int8)
    for _ in range(slices):
        sizes = np.concatenate([sizes, sizes + np.int8(1)])
    sizes.setflags(write=False)
    return sizes


def set_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sum of a value by slice over each set.

    Args:
        values: By slice, shape (L,).

    Returns:
        Shape (2**L,).

    Example:
        >>> set_sums(np.array([1.0, 10.0])).tolist()
        [0.0, 1.0, 10.0, 11.0]
    """
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def lengths_left(sequence: SliceSequence) -> NDArray[np.int8]:
    """Returns how long a prefix of the sequence survives each set of requested slices: up to the first that is in it.

    Args:
        sequence: A permutation of the slices.

    Returns:
        Shape (2**L,).

    Example:
        >>> lengths_left((1, 0)).tolist()
        [2, 1, 0, 0]
    """
    left = np.full(1, len(sequence), np.int8)
    positions = {slice_: position for position, slice_ in enumerate(sequence)}
    for slice_ in range(len(sequence)):
        left = np.concatenate([left, np.minimum(left, np.int8(positions[slice_]))])
    return left


def distinct_request_sets(probabilities: Probabilities, requests: int) -> NDArray[np.float64]:
    """Returns the chance of each set after 1, 2, ... requests, counting only those that hit a new slice.

    Requests are drawn from the prior; one for a slice that was asked for before changes nothing and is not counted.
    So the k-th request that counts is slice x with its prior, divided by the prior of all slices that are left.

    Args:
        probabilities: By slice, shape (L,).
        requests: Number of requests to look ahead.

    Returns:
        Shape (2**L,): for a set of k slices, 1 <= k <= requests, the probability that these are the first k.

    Example:
        >>> distinct_request_sets(np.array([0.75, 0.25]), requests=1).tolist()
        [0.0, 0.75, 0.25, 0.0]
    """
    slices = len(probabilities)
    sizes, left = set_sizes(slices), 1 - set_sums(probabilities)
    bits = 1 << np.arange(slices)
    chance = np.zeros(2**slices)
    chance[0] = 1
    # what each set passes on per unit of a slice's prior; a set that no request follows passes on nothing
    passed_on = np.zeros(2**slices)
    for size in range(min(requests, slices) + 1):
        level = np.flatnonzero(sizes == size)
        if size > 0:
            has = (level[:, None] & bits) != 0
            parents = np.where(has, level[:, None] ^ bits, 0)
            chance[level] = (np.where(has, passed_on[parents], 0) * probabilities).sum(axis=1)
        some_left = left[level] > 1 - ALMOST_SURE
        passed_on[level] = np.divide(chance[level], left[level], out=np.zeros(len(level)), where=some_left)
    chance[0] = 0
    return chance
