"""The adaptive requester: who always asks for the slice that hurts most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.requests import NEVER, FirstRequests
from lightning_s3t.plan.subsets import lengths_left
from lightning_s3t.plan.units import SliceSequence

LISTED_SLICES = 20


def hurting_most(
    shards: int, orders: tuple[SliceSequence, ...], trials: int, generator: np.random.Generator
) -> FirstRequests:
    """Plays the requester who looks at the plan and asks, each time, for what shortens the served prefixes most.

    Where requests shorten them alike (none may shorten them, if several orders have a longest prefix), the one that
    shortens the prefixes of all orders most goes first; what is equal then too is settled at random. Once nothing is
    served, nobody asks any more.

    Args:
        shards: Number of shards, m.
        orders: Orders of the slices.
        trials: How many histories.
        generator: What ties are broken by.

    Returns:
        Shape (trials, shards * slices): the number of the first request for each place, from 1; `NEVER` where there was
        none.

    Raises:
        ConfigurationError: There are more than 20 slices.
    """
    slices = len(orders[0])
    if slices > LISTED_SLICES:
        raise ConfigurationError(
            f"There are {slices} slices. Expected at most {LISTED_SLICES} for the adaptive requester, who looks at "
            "every set of them."
        )
    harm = _harm(orders, slices)
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


def _harm(orders: tuple[SliceSequence, ...], slices: int) -> NDArray[np.int32]:
    # by set of requested slices and next slice: above 0 as long as something is served that the next slice shortens
    lefts = [lengths_left(order) for order in orders]
    served = np.max(lefts, axis=0).astype(np.int32)
    total = np.sum(lefts, axis=0, dtype=np.int32)
    value = served * (len(orders) * slices + 1) + total
    sets = np.arange(len(value))
    return np.stack([value - value[sets | 1 << slice_] for slice_ in range(slices)], axis=1)
