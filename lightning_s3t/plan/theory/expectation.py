"""The expected survivors after a number of requests: exact for few slices, simulated beyond."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.estimate import Estimate
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.objective.lattice import lengths_left, set_sums
from lightning_s3t.plan.problem import PlanProblem, Prior, Probabilities
from lightning_s3t.plan.theory.rotations import are_rotations, rotation_survival
from lightning_s3t.plan.theory.simulation import Moment, simulate
from lightning_s3t.plan.units import SliceSequence

LISTED_SLICES = 14
LOOKED_AHEAD = 2_000
TRIALS = 20_000
EQUAL = 1e-15


def expected_survivors(
    shards: int,
    sequences: Iterable[Iterable[int]],
    requests: Iterable[int] = (1, 5, 20, 50),
    prior: Prior | None = None,
    trials: int = TRIALS,
    seed: int = 0,
) -> tuple[Moment, ...]:
    """Return what is expected to remain after numbers of requests drawn from the prior.

    Up to 14 slices this is exact (its standard errors are 0): the chance of every set of requested slices of a shard is
    carried from request to request, and the length of the best surviving prefix is known for each set. Beyond, it is
    simulated, except for all rotations of a sequence with equally likely requests, which have a closed form
    (`rotation_share`).

    Args:
        shards: Number of shards, m.
        sequences: Sequences of the slices, all different.
        requests: The numbers of requests after which to look.
        prior: Probability of a request for each slice, or for each shard and slice; None for equal probabilities.
        trials: Number of histories to draw, beyond 14 slices.
        seed: Seed of the random draws.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, a number of requests is negative, or the
            prior is invalid.

    Example:
        >>> after = expected_survivors(1, [(0, 1, 2)], requests=[1])[0]
        >>> round(after.length.mean, 4), round(after.shards.mean, 4), after.length.standard_error
        (1.0, 0.6667, 0.0)
    """
    family = check_family(sequences)
    return survivors_of(family, PlanProblem.of(len(family[0]), prior, shards=shards), list(requests), trials, seed)


def survivors_of(
    family: Family, problem: PlanProblem, looks: Sequence[int], trials: int = TRIALS, seed: int = 0
) -> tuple[Moment, ...]:
    """Return what is expected to remain of checked sequences, as `expected_survivors`.

    Args:
        family: The sequences.
        problem: Their shards and slices, and how likely requests are.
        looks: The numbers of requests after which to look.
        trials: Number of histories to draw, beyond 14 slices.
        seed: Seed of the random draws.
    """
    shards, slices, probabilities = problem.shards, problem.slices, problem.places
    rotations = slices > LISTED_SLICES and bool(np.ptp(probabilities) < EQUAL) and are_rotations(family)
    if max(looks, default=0) > LOOKED_AHEAD or (slices > LISTED_SLICES and not rotations):
        return simulate(shards, family, looks, trials, probabilities, seed=seed).moments
    if min(looks, default=0) < 0:
        raise ConfigurationError(f"Expected numbers of requests to be non-negative integers but got {min(looks)}.")
    if rotations:
        chances = [rotation_survival(slices, look, shards) for look in looks]
        return tuple(
            _exact(look, shards, slices, shards * float(chance[0]), shards * float(chance.sum()))
            for look, chance in zip(looks, chances, strict=True)
        )
    left = np.max([lengths_left(sequence) for sequence in family], axis=0)
    alive, lengths = np.zeros(max(looks, default=0) + 1), np.zeros(max(looks, default=0) + 1)
    rows, times = np.unique(np.round(probabilities, 15), axis=0, return_counts=True)
    for row, equal in zip(rows, times, strict=True):
        for number, chance in enumerate(_request_sets(row, len(alive) - 1)):
            alive[number] += equal * float(chance @ (left > 0))
            lengths[number] += equal * float(chance @ left)
    return tuple(_exact(look, shards, slices, float(alive[look]), float(lengths[look])) for look in looks)


def retention_bound(shards: int, sequences: Iterable[Iterable[int]], requests: int) -> float:
    """Returns a lower bound on the expected length of a shard's best surviving prefix, for equal probabilities.

    A prefix of k slices is untouched by r requests with probability (1 - k/(mL))^r. Take d disjoint prefixes of k
    slices. That they are all touched is at most as likely as if they were independent (counts of balls in boxes are
    negatively associated: Joag-Dev and Proschan 1983), so that one is untouched with probability at least 1 - (1 - (1 -
    k/(mL))^r)^d. The sum over k is the bound.

    For L rotations d is L/k, rounded down: the number min(B, L/k) in the paper's statement on retained performance,
    which takes it for any B. For B < L rotations that start one slice apart there are fewer such prefixes, and the
    paper's expression is above the true value; here d is counted in the given sequences.

    Args:
        shards: Number of shards, m.
        sequences: Sequences of the slices, all different.
        requests: Number of requests, r.

    Example:
        >>> round(retention_bound(1, [(0, 1), (1, 0)], requests=1), 4)
        0.75
    """
    family = [tuple(sequence) for sequence in sequences]
    slices = len(family[0])
    bound = 0.0
    for stage in range(1, slices + 1):
        touched = 1 - (1 - stage / (shards * slices)) ** requests
        bound += 1 - touched ** _disjoint(family, stage)
    return bound


def _exact(look: int, shards: int, slices: int, alive: float, lengths: float) -> Moment:
    return Moment(
        look,
        shards=Estimate(alive, 0.0),
        length=Estimate(lengths / shards, 0.0),
        data=Estimate(lengths / (shards * slices), 0.0),
    )


def _request_sets(probabilities: Probabilities, requests: int) -> Iterator[NDArray[np.float64]]:
    """Yield the probability that each set was requested, after 0, 1, ..., `requests` requests.

    Args:
        probabilities: By slice, shape (L,); the remainder to 1 is for requests to other shards.
        requests: Number of requests.

    Yields:
        Shape (2**L,).

    Example:
        >>> [after.tolist() for after in _request_sets(np.array([0.5, 0.25]), requests=1)]
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


def _disjoint(sequences: list[SliceSequence], stage: int) -> int:
    # greedily add prefixes that are disjoint from those before, from the sequence that gives most
    most = 0
    for start in range(len(sequences)):
        taken: set[int] = set()
        for sequence in (*sequences[start:], *sequences[:start]):
            if taken.isdisjoint(sequence[:stage]):
                taken.update(sequence[:stage])
        most = max(most, len(taken) // stage)
    return most
