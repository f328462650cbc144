"""The deletion rate for any sequences and any prior: the expected number of requests until no unit survives.

A unit is lost with the first slice of its sequence, if not before. So all is lost when, in every shard, each slice that
stands first in one of its sequences has been asked for. This is a coupon collector's problem over the places (shard,
first slice), with probability p_i of a request for place i. Three forms of the same value:

- Equal p_i = 1/(mL), n = m*B' places: after k of them are found, the next takes 1/((n - k) p) requests on average. The
  sum over k is mL * H(n), `deletion_rate` in survival.py.
- In general, condition on which needed place comes next: E(left) = (1 + sum of p_i E(left without i)) / sum of p_i,
  both sums over the places left. Places of equal probability are interchangeable, so `left` is a count for each
  distinct probability: exact, and cheap while there are few of these.
- Let requests come at random times, one a unit of time on average. Then the places are found at independent exponential
  times, all of them by time t with probability prod(1 - exp(-p_i t)); the expected time is the integral of one minus
  that, and the expected number of requests is the same (Wald). Expanding the product gives inclusion-exclusion over the
  places. The integral is computed numerically where there are too many counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import product

import numpy as np

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family, check_family
from lightning_s3t.plan.problem import PlanProblem, Prior, Probabilities

COUNTED_STATES = 20_000
DIGITS = 14


def expected_lifetime(shards: int, sequences: Iterable[Iterable[int]], prior: Prior | None = None) -> float:
    """Returns the expected number of requests until no unit of any shard survives.

    For equal probabilities it is `deletion_rate(shards, slices, distinct first slices)`.

    Args:
        shards: Number of shards, m.
        sequences: Sequences of the slices, all different.
        prior: Probability of a request for each slice, or for each shard and slice; None for equal probabilities.

    Returns:
        Infinity, if there is a first slice that is never asked for.

    Raises:
        ConfigurationError: A sequence is not a permutation or appears twice, or the prior is invalid.

    Example:
        >>> round(expected_lifetime(5, [(0, 1, 2), (1, 2, 0)]), 2)
        43.93
        >>> round(expected_lifetime(1, [(0, 1), (1, 0)], prior=[0.9, 0.1]), 2)
        10.11
    """
    family = check_family(sequences)
    return lifetime_of(family, PlanProblem.of(len(family[0]), prior, shards=shards))


def lifetime_of(family: Family, problem: PlanProblem) -> float:
    """Returns the `expected_lifetime` of checked sequences.

    Args:
        family: The sequences.
        problem: Their shards and slices, and how likely requests are.
    """
    first = sorted({sequence[0] for sequence in family})
    return collector(problem.places[:, first].ravel())


def collector(probabilities: Iterable[float]) -> float:
    """Returns the expected number of draws until each of some outcomes has come (the coupon collector).

    It also judges other partitions: SISA, where the first slice of every shard is needed, and `arcane_lifetime`.

    Args:
        probabilities: Of the needed outcomes; the remainder to 1 is for other outcomes.

    Raises:
        ConfigurationError: There are none, one is negative, or they sum to more than 1.

    Example:
        >>> collector([0.5, 0.5])
        3.0
    """
    needed = [float(probability) for probability in probabilities]
    if not needed or min(needed) < 0 or sum(needed) > 1 + 1e-6:
        raise ConfigurationError(
            f"The outcomes have the probabilities {needed}. Expected at least one, none negative, with a sum of at "
            "most 1."
        )
    if min(needed) == 0:
        return math.inf
    counts = Counter(float(f"{probability:.{DIGITS}e}") for probability in needed)
    if math.prod(count + 1 for count in counts.values()) <= COUNTED_STATES:
        return _by_counts(list(counts), list(counts.values()))
    return _by_integral(np.array(needed))


def arcane_lifetime(classes: Iterable[float], blocks: int) -> float:
    """Returns the deletion rate of an ARCANE-style partition, for comparison.

    ARCANE (Yan et al., IJCAI 2022) trains a model for each class, block by block of the class's data, and keeps the
    intermediate states. After a request the model falls back to the state before the block, so a class is lost with its
    first block, and everything is lost with the last class. The comparison covers only how long each lasts without
    retraining. An ensemble of one-class models is a different learner: a lost class can no longer be recognised, while
    a lost shard costs accuracy in every class. Assumptions: requests are for samples, all equally likely, and a class's
    blocks are of equal size. ARCANE's choice of representative samples is left out.

    Args:
        classes: The classes' shares of the data, summing to 1: they take the place of shards.
        blocks: Number of blocks of a class.

    Raises:
        ConfigurationError: A share is negative, or they sum to more than 1, or there is no block.

    Example:
        >>> round(arcane_lifetime([0.2] * 5, blocks=6), 1)  # as SISA with five shards
        68.5
        >>> round(arcane_lifetime([0.6, 0.1, 0.1, 0.1, 0.1], blocks=6), 1)  # small classes last, large ones don't
        125.0
    """
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        raise ConfigurationError(f"Expected argument `blocks` to be a positive integer but got {blocks!r}.")
    return collector([share / blocks for share in classes])


def _by_counts(probabilities: list[float], counts: list[int]) -> float:
    expected: dict[tuple[int, ...], float] = {}
    for left in product(*(range(count + 1) for count in counts)):  # fewer left come first
        rates = [number * probability for number, probability in zip(left, probabilities, strict=True)]
        if not any(left):
            expected[left] = 0.0
            continue
        later = 0.0
        for kind, rate in enumerate(rates):
            if rate > 0:
                fewer = (*left[:kind], left[kind] - 1, *left[kind + 1 :])
                later += rate * expected[fewer]
        expected[left] = (1 + later) / sum(rates)
    return expected[tuple(counts)]


def _by_integral(probabilities: Probabilities) -> float:
    from scipy.integrate import quad

    def not_yet(time: float) -> float:
        return float(-np.expm1(np.log(-np.expm1(-probabilities * time)).sum())) if time > 0 else 1.0

    # past this time less than 1e-15 of a draw is left
    end = (math.log(len(probabilities)) + 35) / probabilities.min()
    # where the integrand falls: near 1/p for each probability
    knees = np.unique(np.clip(1 / np.unique(probabilities), 0, end))[-20:]
    return float(quad(not_yet, 0, end, points=knees, limit=500, epsabs=0, epsrel=1e-10)[0])
