"""The objective of the planner `optimal`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.checks import check_family
from lightning_s3t.plan.estimate import Estimate
from lightning_s3t.plan.prior import Prior, Probabilities, check_prior
from lightning_s3t.plan.sampled import SampledLandscape
from lightning_s3t.plan.subsets import distinct_request_sets, lengths_left

LISTED_SLICES = 20  # a million sets
SAMPLES = 100_000


def objective(
    sequences: Iterable[Iterable[int]], prior: Prior | None = None, horizon: int | None = None, seed: int = 0
) -> Estimate:
    """Returns the expected length of a shard's best surviving prefix, summed over the coming requests.

    Requests are drawn from the prior, and only those count that hit a slice anew: others change nothing. Up to 20
    slices the value is exact, beyond it is estimated from drawn histories.

    Args:
        sequences: Orders of the slices, all different.
        prior: Probability that a request is for each slice; None for equal ones.
        horizon: Number of requests to look ahead; None for L - 1.
        seed: For the draws beyond 20 slices.

    Raises:
        ConfigurationError: An order is no permutation or is there twice, the horizon is below 1, or the prior is off.

    Example:
        >>> round(objective([(0, 1, 2, 3), (3, 2, 1, 0)]).mean, 4)
        4.1667
    """
    orders = check_family(sequences)
    probabilities, horizon = check_prior(prior, len(orders[0])), default_horizon(len(orders[0]), horizon)
    if len(probabilities) <= LISTED_SLICES:
        left = lengths_left(orders[0])
        for order in orders[1:]:
            left = np.maximum(left, lengths_left(order))
        return Estimate(float(distinct_request_sets(probabilities, horizon) @ left), 0.0)
    landscape = SampledLandscape(probabilities, horizon, SAMPLES, seed)
    profile = landscape.profile(orders[0])
    for order in orders[1:]:
        profile = np.maximum(profile, landscape.profile(order))
    return Estimate(landscape.value(profile), landscape.standard_error(profile))


def default_horizon(slices: int, horizon: int | None) -> int:
    """Returns how many requests to look ahead.

    Args:
        slices: Number of slices, L.
        horizon: What was asked for; None for L - 1 (1 where there is one slice).

    Raises:
        ConfigurationError: It is below 1.

    Example:
        >>> default_horizon(6, None)
        5
    """
    if horizon is None:
        return max(slices - 1, 1)
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ConfigurationError(f"Expected argument `horizon` to be an integer of at least 1 but got {horizon!r}.")
    return min(horizon, slices)


def is_uniform(probabilities: Probabilities) -> bool:
    """Says whether every slice is as likely as the next.

    Args:
        probabilities: By slice.
    """
    return bool(np.ptp(probabilities) < 1e-12)
