"""Random histories of requests: when each place is first requested, for each kind of requester."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family
from lightning_s3t.plan.objective.lattice import lengths_left
from lightning_s3t.plan.problem import Probabilities

FirstRequests: TypeAlias = NDArray[np.int64]

LISTED_SLICES = 20
NEVER = np.iinfo(np.int64).max // 4


def by_slice(probabilities: Probabilities, trials: int, generator: np.random.Generator) -> FirstRequests:
    """Draw histories with independent requests: each is for a place with its probability.

    The places are found in the order in which exponential clocks with these rates ring. With those of mass q found, the
    next new one takes a geometric number of requests of mean 1/(1 - q). So a history takes as many draws as there are
    places, however many requests it has.

    Args:
        probabilities: By place, summing to 1.
        trials: Number of histories.
        generator: Generator for the random draws.

    Returns:
        Shape (trials, places): the number of the first request for each place, from 1; `NEVER` if there is none.
    """
    order = _clocks(probabilities, trials, generator).argsort(axis=1)
    mass = probabilities[order]
    fresh = np.clip(1 - np.cumsum(mass, axis=1) + mass, 1e-15, 1)  # places that were not requested before
    numbers = np.cumsum(generator.geometric(fresh), axis=1)
    numbers[mass == 0] = NEVER
    return _by_place(order, numbers)


def without_replacement(
    probabilities: Probabilities, sizes: NDArray[np.int64], trials: int, generator: np.random.Generator
) -> FirstRequests:
    """Draw histories without replacement: each request is for one of the remaining items.

    An item's clock is exponential, its rate the place's probability divided by the place's size; a place is found when
    the first of its clocks rings. From then on its other clocks ring between two first requests with binomial counts,
    the same for all items of equal rate.

    Args:
        probabilities: By place, summing to 1.
        sizes: Number of items (samples or subjects) at each place.
        trials: Number of histories.
        generator: Generator for the random draws.

    Returns:
        Shape (trials, places): the number of the first request for each place, from 1; `NEVER` where a place
        has none.
    """
    rates = np.where(sizes > 0, probabilities / np.maximum(sizes, 1), 0.0)
    clocks = _clocks(rates * sizes, trials, generator)
    order = clocks.argsort(axis=1)
    times = np.take_along_axis(clocks, order, axis=1)
    kinds, kind_of = np.unique(np.round(rates, 15), return_inverse=True)
    left = np.zeros((trials, len(kinds)), np.int64)  # items at the places that were found, by kind of rate
    numbers, asked, every = np.empty_like(order), np.zeros(trials, np.int64), np.arange(trials)
    for step in range(len(rates)):
        place = order[:, step]
        found = np.isfinite(times[:, step])
        if step > 0:
            passed = np.where(found, times[:, step] - times[:, step - 1], 0.0)
            rung = generator.binomial(left, -np.expm1(-kinds * passed[:, None]))
            left -= rung
            asked += rung.sum(axis=1)
        asked += found
        numbers[:, step] = np.where(found, asked, NEVER)
        left[every, kind_of[place]] += np.where(found, sizes[place] - 1, 0)
    return _by_place(order, numbers)


def hurting_most(shards: int, family: Family, trials: int, generator: np.random.Generator) -> FirstRequests:
    """Simulate a requester who knows the plan and always requests the slice that shortens the served prefixes most.

    If several requests shorten them equally (possibly by nothing, if several sequences have a longest prefix), the one
    that shortens the prefixes of all sequences most is chosen; remaining ties are broken at random. Once nothing is
    served, the requests end.

    Args:
        shards: Number of shards, m.
        family: Sequences of the slices.
        trials: Number of histories.
        generator: Generator that breaks ties.

    Returns:
        Shape (trials, shards * slices): the number of the first request for each place, from 1; `NEVER` where there was
        none.

    Raises:
        ConfigurationError: There are more than 20 slices.
    """
    slices = len(family[0])
    if slices > LISTED_SLICES:
        raise ConfigurationError(
            f"There are {slices} slices. Expected at most {LISTED_SLICES} for the adaptive requester, which examines "
            "every subset of them."
        )
    harm = _harm(family, slices)
    asked = np.zeros((trials, shards), np.int64)
    first = np.full((trials, shards * slices), NEVER, np.int64)
    every = np.arange(trials)
    for number in range(1, shards * slices + 1):
        harms = harm[asked].reshape(trials, -1)
        most = harms.max(axis=1)
        asks = most > 0
        if not asks.any():
            break
        lots = generator.random(harms.shape, dtype=np.float32)
        place = np.where(harms == most[:, None], lots, -1).argmax(axis=1)
        first[every[asks], place[asks]] = number
        shard, slice_ = np.divmod(place, slices)
        asked[every[asks], shard[asks]] |= 1 << slice_[asks]
    return first


def _clocks(rates: Probabilities, trials: int, generator: np.random.Generator) -> Probabilities:
    clocks = generator.standard_exponential((trials, len(rates)))
    return np.divide(clocks, rates, out=np.full_like(clocks, np.inf), where=rates > 0)


def _by_place(order: NDArray[np.intp], numbers: NDArray[np.int64]) -> FirstRequests:
    placed = np.empty_like(numbers)
    np.put_along_axis(placed, order, numbers, axis=1)
    return placed


def _harm(family: Family, slices: int) -> NDArray[np.int32]:
    # by set of requested slices and next slice: above 0 while something is served that the next slice shortens
    lefts = [lengths_left(sequence) for sequence in family]
    served = np.max(lefts, axis=0).astype(np.int32)
    total = np.sum(lefts, axis=0, dtype=np.int32)
    value = served * (len(family) * slices + 1) + total
    sets = np.arange(len(value))
    return np.stack([value - value[sets | 1 << slice_] for slice_ in range(slices)], axis=1)
