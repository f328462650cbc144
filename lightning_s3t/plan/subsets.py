"""Arrays over all sets of slices: which are requested, with what probability, and what an order has left then.

A set is a number with a bit a slice, so an array over all sets has 2**L entries, and entry 5 is for slices 0 and 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.prior import Probabilities
from lightning_s3t.plan.units import SliceSequence

ALMOST_SURE = 1 - 1e-12


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


def lengths_left(order: SliceSequence) -> NDArray[np.int8]:
    """Returns how long a prefix of the order survives each set of requested slices: up to the first that is in it.

    Args:
        order: A permutation of the slices.

    Returns:
        Shape (2**L,).

    Example:
        >>> lengths_left((1, 0)).tolist()
        [2, 1, 0, 0]
    """
    left = np.full(1, len(order), np.int8)
    positions = {slice_: position for position, slice_ in enumerate(order)}
    for slice_ in range(len(order)):
        left = np.concatenate([left, np.minimum(left, np.int8(positions[slice_]))])
    return left


def distinct_request_sets(probabilities: Probabilities, requests: int) -> NDArray[np.float64]:
    """Returns how often each set is what is requested after 1, 2, ... requests, counting only those that hit anew.

    Requests are drawn from the prior; one for a slice that was asked for before changes nothing and is not counted.
    So the k-th request that counts is slice x with its prior, divided by the prior of all slices that are left.

    Args:
        probabilities: By slice, shape (L,).
        requests: How many to look ahead.

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
    # what each set passes on per unit of a slice's prior; a set after which nobody asks any more passes on nothing
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


def request_sets(probabilities: Probabilities, requests: int) -> Iterator[NDArray[np.float64]]:
    """Yields the probability that each set is what was requested, after 0, 1, ..., `requests` requests.

    Args:
        probabilities: By slice, shape (L,); what they lack to 1 is for requests that go elsewhere.
        requests: How many.

    Yields:
        Shape (2**L,).

    Example:
        >>> [after.tolist() for after in request_sets(np.array([0.5, 0.25]), requests=1)]
        [[1.0, 0.0, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0]]
    """
    slices = len(probabilities)
    stays = (1 - probabilities.sum()) + set_sums(probabilities)
    chance = np.zeros(2**slices)
    chance[0] = 1
    yield chance
    for _ in range(requests):
        after = chance * stays
        for slice_, probability in enumerate(probabilities):
            with_and_without = (-1, 2, 2**slice_)
            after.reshape(with_and_without)[:, 1] += probability * chance.reshape(with_and_without)[:, 0]
        chance = after
        yield chance
