"""The simulator: what survives random histories of requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.estimate import Estimate
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.problem import Prior, Probabilities, check_place_prior
from lightning_s3t.plan.theory.histories import NEVER, FirstRequests, by_slice, hurting_most, without_replacement

Requester: TypeAlias = Literal["slice", "subject", "sample", "adaptive"]

BLOCK = 20_000
REQUESTERS = ("slice", "subject", "sample", "adaptive")


@dataclass(frozen=True)
class Moment:
    """What remains after a number of requests.

    Attributes:
        requests: Number of requests.
        shards: Number of shards that still serve.
        length: Length of the best surviving prefix, mean over the shards, 0 for one without.
        data: Share of the training data that the serving units were trained on, if all slices are of equal size.
    """

    requests: int
    shards: Estimate
    length: Estimate
    data: Estimate


@dataclass(frozen=True)
class Simulation:
    """The result of the trials.

    Attributes:
        trials: Number of trials.
        lifetime: Number of the request after which no unit survives. Its mean is infinite if some trials never get
            there, as when subjects run out.
        moments: What remains after each number of requests.
    """

    trials: int
    lifetime: Estimate
    moments: tuple[Moment, ...]


def simulate(
    shards: int,
    sequences: Iterable[Iterable[int]],
    requests: Iterable[int] = (1, 5, 20, 50),
    trials: int = 10_000,
    prior: Prior | None = None,
    requester: Requester = "slice",
    sizes: ArrayLike | None = None,
    seed: int = 0,
) -> Simulation:
    """Plays requests against a plan, many times.

    - "slice": each request is for a slice drawn from the prior, independent of earlier ones.
    - "subject", "sample": each asks only once, so that the places of earlier requesters run out. The prior of a place
      is divided among those in it; without a prior all are equally likely.
    - "adaptive": each request is for the slice whose loss shortens the served prefixes most, with random ties.

    Args:
        shards: Number of shards, m.
        sequences: Sequences of the slices, all different.
        requests: The numbers of requests after which to look.
        trials: Number of histories to draw.
        prior: Probability of a request for each slice, or for each shard and slice; None for equal probabilities.
        requester: The kind of requester.
        sizes: Number of subjects or samples at each shard and slice: shape (m, L), or one number for all.
        seed: Seed of the random draws.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, an argument is out of range, or the prior
            is invalid.

    Example:
        >>> found = simulate(5, [(0, 1, 2), (1, 2, 0)], requests=[5], trials=2000)
        >>> bool(abs(found.lifetime.mean - 43.93) < 4 * found.lifetime.standard_error)
        True
    """
    family = check_family(sequences)
    slices = len(family[0])
    looks = _check_looks(requests)
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 2:
        raise ConfigurationError(f"Expected argument `trials` to be an integer of at least 2 but got {trials!r}.")
    if requester not in REQUESTERS:
        raise ConfigurationError(f"Expected argument `requester` to be one of {REQUESTERS} but got {requester!r}.")
    counted = requester in ("subject", "sample")
    if counted != (sizes is not None):
        raise ConfigurationError(
            f"The requester is {requester!r} and sizes are {'missing' if sizes is None else 'given'}. Expected sizes "
            "for 'subject' and 'sample', and only for these."
        )
    items = _check_sizes(sizes, shards, slices) if sizes is not None else None
    if prior is None and items is not None:
        probabilities = items / items.sum()
    else:
        probabilities = check_place_prior(prior, shards, slices)
    if requester == "adaptive" and prior is not None:
        raise ConfigurationError(
            "A prior was given, but the adaptive requester uses the plan instead. Leave the prior out."
        )
    generator = np.random.default_rng(seed)
    totals = _Totals(looks)
    for start in range(0, trials, BLOCK):
        block = min(BLOCK, trials - start)
        if requester == "adaptive":
            first = hurting_most(shards, family, block, generator)
        elif items is not None:
            first = without_replacement(probabilities.ravel(), items.ravel(), block, generator)
        else:
            first = by_slice(probabilities.ravel(), block, generator)
        totals.add(stage_ends(first.reshape(block, shards, slices), family))
    return totals.simulation(trials, shards, slices)


def stage_ends(first: FirstRequests, family: Family) -> FirstRequests:
    """Return when the last surviving prefix of each length is lost.

    Args:
        first: When each slice is first requested, as any numbers that grow with time: shape (trials, shards, L).
        family: The sequences.

    Returns:
        Shape (trials, shards, L); the first entry is for prefixes of one slice.
    """
    ends = np.zeros_like(first)
    for sequence in family:
        np.maximum(ends, np.minimum.accumulate(first[:, :, list(sequence)], axis=2), out=ends)
    return ends


class _Totals:
    """Sums and sums of squares over the trials, so that blocks of trials can be forgotten."""

    def __init__(self, looks: tuple[int, ...]) -> None:
        self.looks = looks
        self.lifetime = np.zeros(2)
        self.shards, self.length = np.zeros((len(looks), 2)), np.zeros((len(looks), 2))

    def add(self, ends: FirstRequests) -> None:
        self.lifetime += _sums(ends[:, :, 0].max(axis=1))
        for number, look in enumerate(self.looks):
            alive = ends > look
            self.shards[number] += _sums(alive[:, :, 0].sum(axis=1))
            self.length[number] += _sums(alive.sum(axis=(1, 2)))

    def simulation(self, trials: int, shards: int, slices: int) -> Simulation:
        moments = [
            Moment(
                look,
                shards=_estimate(self.shards[number], trials, 1),
                length=_estimate(self.length[number], trials, shards),
                data=_estimate(self.length[number], trials, shards * slices),
            )
            for number, look in enumerate(self.looks)
        ]
        return Simulation(trials, _estimate(self.lifetime, trials, 1), tuple(moments))


def _sums(values: NDArray[np.int64]) -> NDArray[np.float64]:
    numbers = np.where(values >= NEVER, np.inf, values.astype(np.float64))
    return np.array([numbers.sum(), numbers @ numbers])


def _estimate(sums: NDArray[np.float64], trials: int, scale: int) -> Estimate:
    mean = float(sums[0]) / trials
    if not np.isfinite(mean):
        return Estimate(mean, 0.0)
    variance = max(float(sums[1]) / trials - mean * mean, 0.0) * trials / (trials - 1)
    return Estimate(mean / scale, float(np.sqrt(variance / trials)) / scale)


def _check_looks(requests: Iterable[int]) -> tuple[int, ...]:
    looks = tuple(requests)
    for look in looks:
        if isinstance(look, bool) or not isinstance(look, int) or look < 0:
            raise ConfigurationError(f"Expected numbers of requests to be non-negative integers but got {look!r}.")
    return looks


def _check_sizes(sizes: ArrayLike, shards: int, slices: int) -> NDArray[np.int64]:
    found: Probabilities = np.asarray(sizes, np.float64)
    if found.shape not in ((), (shards, slices)):
        raise ConfigurationError(
            f"The sizes have the shape {found.shape}. Expected one number, or shape ({shards}, {slices}), one for each "
            "shard and slice."
        )
    if not (found >= 0).all() or (found != np.floor(found)).any() or found.sum() == 0:
        raise ConfigurationError("The sizes are invalid. Expected non-negative integers that are not all 0.")
    return np.broadcast_to(found, (shards, slices)).astype(np.int64)
