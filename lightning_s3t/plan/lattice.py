"""The exact landscape of the search: every set of slices is looked at, so it is for up to about 14 slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.prior import Probabilities
from lightning_s3t.plan.subsets import distinct_request_sets, lengths_left, set_sizes
from lightning_s3t.plan.units import SliceSequence

TIE = 1e-12

Profile = NDArray[Any]
Ties = Callable[[], float]


class Landscape(Protocol):
    """What the search needs to know of the objective.

    A profile says what an order is worth in each case that may come; that of several orders is the maximum of theirs,
    case by case, since a shard serves its best survivor.
    """

    def nothing(self) -> Profile:
        """Returns the profile of no orders."""

    def profile(self, order: SliceSequence) -> Profile:
        """Returns an order's profile.

        Args:
            order: A permutation of the slices.
        """

    def value(self, profile: Profile) -> float:
        """Returns the objective: the expected length of the best surviving prefix, summed over the coming requests.

        Args:
            profile: Of some orders.
        """

    def best_reply(self, profile: Profile, ties: Ties) -> SliceSequence:
        """Returns an order that adds most to others.

        Args:
            profile: Of the others.
            ties: Draws from [0, 1), to choose among equal ones.
        """


class Lattice:
    """The landscape over all sets of requested slices.

    Args:
        probabilities: Of a request for each slice, shape (L,).
        horizon: Number of requests to look ahead, counting those that hit a slice anew.
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
        """Returns the profile of no orders: length 0 whatever comes."""
        return np.zeros(2**self.slices, np.int8)

    def profile(self, order: SliceSequence) -> Profile:
        """Returns the length that is left of an order, by set of requested slices.

        Args:
            order: A permutation of the slices.
        """
        return lengths_left(order)

    def value(self, profile: Profile) -> float:
        """Returns the objective.

        Args:
            profile: Of some orders.
        """
        return float(self.weights @ profile)

    def best_reply(self, profile: Profile, ties: Ties) -> SliceSequence:
        """Returns an order that adds most to others; there is none better.

        An order is a path from the empty set of slices to the full one. Its k-th set S adds the weight of those
        requested sets T that leave S alone and leave the others less than k slices; this depends on S alone, so the
        best order is a longest path.

        Args:
            profile: Of the others.
            ties: Draws from [0, 1), to choose among equal ones.
        """
        stages = np.arange(1, self.slices + 1)[:, None]
        return self.longest_path(np.where(profile < stages, self.weights, 0.0), ties)[0]

    def longest_path(self, prizes: NDArray[np.float64], ties: Ties | None = None) -> tuple[SliceSequence, float]:
        """Returns the order that collects most, and how much.

        Args:
            prizes: By stage and requested set, shape (L, 2**L): what it is worth to have that stage's prefix
                untouched by that set. It is overwritten.
            ties: Draws from [0, 1), to choose among equal ones; None for the first.
        """
        gains = self.sum_over_subsets(prizes)
        full = 2**self.slices - 1
        best = np.zeros(2**self.slices)
        for stage in range(1, self.slices + 1):
            level = self._levels[stage]
            best[level] = best[self._parents[stage]].max(axis=1) + gains[stage - 1, full - level]
        order, here = [], full
        while here:
            last = [slice_ for slice_ in range(self.slices) if here >> slice_ & 1]
            values = best[[here ^ (1 << slice_) for slice_ in last]]
            equal = np.flatnonzero(values >= values.max() - TIE)
            slice_ = last[equal[int(ties() * len(equal)) if ties else 0]]
            order.append(slice_)
            here ^= 1 << slice_
        return tuple(reversed(order)), float(best[full])

    def best_completions(
        self, profile: Profile, prefixes: list[SliceSequence]
    ) -> Iterator[tuple[SliceSequence, float, SliceSequence]]:
        """Yields, for each prefix, the order that begins with it and adds most to others.

        Args:
            profile: Of the others.
            prefixes: Beginnings of orders.

        Yields:
            The order, what its stages after the prefix add to the objective, and the prefix.
        """
        stages = np.arange(1, self.slices + 1)[:, None]
        gains = self.sum_over_subsets(np.where(profile < stages, self.weights, 0.0))
        full = 2**self.slices - 1
        # what is to be had after each set: the longest path from it to the full one
        ahead = np.zeros(2**self.slices)
        for stage in range(self.slices, 0, -1):
            level = self._levels[stage]
            with_own = ahead[level] + gains[stage - 1, full - level]
            np.maximum.at(ahead, self._parents[stage].ravel(), np.repeat(with_own, stage))
        for prefix in prefixes:
            here, order = sum(1 << slice_ for slice_ in prefix), list(prefix)
            while here != full:
                left = [slice_ for slice_ in range(self.slices) if not here >> slice_ & 1]
                after = [here | 1 << slice_ for slice_ in left]
                values = ahead[after] + gains[len(order), [full - set_ for set_ in after]]
                choice = int(np.flatnonzero(values >= values.max() - TIE)[0])
                order.append(left[choice])
                here = after[choice]
            yield tuple(order), float(ahead[sum(1 << slice_ for slice_ in prefix)]), prefix

    def sum_over_subsets(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Puts in the place of each set the sum over all its subsets, and returns the same array.

        Args:
            values: Shape (rows, 2**L); each row by itself.
        """
        for slice_ in range(self.slices):
            with_and_without = values.reshape(len(values), -1, 2, 2**slice_)
            with_and_without[:, :, 1] += with_and_without[:, :, 0]
        return values
