"""The outlook of a store: how much of the data still serves after further requests, from the units that are alive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError


@dataclass(frozen=True)
class Outlook:
    """The share of the data that serves after further requests.

    Attributes:
        requests: The numbers of further requests.
        mean: The mean share after each number, from 0 to 1.
        low: The share that 95 % of the simulated histories reach or exceed.
    """

    requests: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]


def outlook(
    alive: Iterable[UnitId],
    shares: Sequence[float],
    slices: int,
    requests: Sequence[int],
    trials: int = 1000,
    seed: int = 0,
) -> Outlook:
    """Estimate how much of the data serves after further requests, without any retraining.

    Each request is from one person, and all people are equally likely to ask. A shard serves its longest unit that no
    request has reached.

    Args:
        alive: The units that are built and not revoked.
        shares: By shard, its share of all people. They need not sum to 1.
        slices: Number of slices of a shard, L.
        requests: The numbers of further requests, 0 or more.
        trials: Number of histories of requests to simulate.
        seed: Seed of the random draws.

    Raises:
        ConfigurationError: No shard has people, or a number of requests is negative.

    Example:
        >>> units = [UnitId(0, (0,)), UnitId(0, (0, 1)), UnitId(1, (0,)), UnitId(1, (0, 1))]
        >>> found = outlook(units, shares=[0.5, 0.5], slices=2, requests=[0, 1, 50])
        >>> found.mean[0], 0.6 < found.mean[1] < 0.65, found.mean[2]
        (1.0, True, 0.0)
    """
    weights = np.asarray(shares, dtype=float)
    if not len(weights) or weights.sum() <= 0:
        raise ConfigurationError("Expected argument `shares` to have a positive share in at least one shard.")
    if min(requests, default=0) < 0:
        raise ConfigurationError(f"Expected argument `requests` to be 0 or more but got {min(requests)}.")
    weights = weights / weights.sum()
    first = _first_requests(np.repeat(weights / slices, slices), max(requests, default=0), trials, seed)
    wanted = np.asarray(requests, dtype=int)
    served = np.zeros((trials, len(wanted)))
    units = list(alive)
    for shard, share in enumerate(weights):
        # by stage, the request before which a unit of at least that stage still serves
        until = np.full((trials, slices), -1)
        for unit in units:
            if unit.shard == shard:
                ends = first[:, [shard * slices + slice_ for slice_ in unit.prefix]].min(axis=1)
                until[:, : unit.stage] = np.maximum(until[:, : unit.stage], ends[:, None])
        served += share * (until[:, :, None] >= wanted).mean(axis=1)
    low = np.quantile(served, 0.05, axis=0, method="lower")
    return Outlook(tuple(map(int, wanted)), tuple(map(float, served.mean(axis=0))), tuple(map(float, low)))


def _first_requests(chances: np.ndarray, most: int, trials: int, seed: int) -> np.ndarray:
    """Return how many requests come before the first one for each cell, shape (trials, cells); `most` if none does."""
    random = np.random.default_rng(seed)
    asked = random.choice(len(chances), size=(trials, most), p=chances)
    first = np.full((trials, len(chances)), most)
    for number in reversed(range(most)):
        first[np.arange(trials), asked[:, number]] = number
    return first
