"""How good given orders are by the objective of `optimal`, and how much better any others could be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_s3t.plan.bound import everything_bound, lagrangian_bound, uniform_bound
from lightning_s3t.plan.checks import check_family
from lightning_s3t.plan.exact import EXACT_SLICES, exact_optimum
from lightning_s3t.plan.prior import Prior, Probabilities, check_prior
from lightning_s3t.plan.valuation import default_horizon, is_uniform, objective

PRICED_SLICES = 12
EQUAL = 1e-6


@dataclass(frozen=True)
class Assessment:
    """What some orders are worth.

    Attributes:
        value: Expected length of the best surviving prefix of a shard, summed over the coming requests.
        standard_error: Of the value; 0 where it is exact.
        bound: No orders of that budget are worth more.
    """

    value: float
    standard_error: float
    bound: float

    @property
    def gap(self) -> float:
        """How much more than the value the bound is, as a share of the value."""
        return max(self.bound / self.value - 1, 0.0) if self.value > 0 else 0.0

    @property
    def proven(self) -> bool:
        """Whether no orders are better: the value is exact and reaches the bound."""
        return self.standard_error == 0 and self.value >= self.bound - EQUAL


def assess(
    sequences: Iterable[Iterable[int]], prior: Prior | None = None, horizon: int | None = None, seed: int = 0
) -> Assessment:
    """Returns the objective of `optimal` for given orders, and a bound on that of any as many orders.

    - The value is exact up to 20 slices, an estimate from drawn histories beyond.
    - The bound is the optimum itself up to 5 slices. Beyond, it is a closed form for equal probabilities
      (`uniform_bound`), a Lagrangian relaxation for a prior up to 12 slices, and else what all L! orders leave.

    Args:
        sequences: Orders of the slices, all different.
        prior: Probability that a request is for each slice; None for equal ones.
        horizon: Number of requests to look ahead; None for L - 1.
        seed: For the draws beyond 20 slices.

    Raises:
        ConfigurationError: An order is no permutation or is there twice, the horizon is below 1, or the prior is off.

    Example:
        >>> found = assess([(0, 1, 2, 3), (2, 3, 0, 1)])
        >>> round(found.value, 4), round(found.bound, 4), found.proven
        (4.1667, 4.1667, True)
    """
    orders = check_family(sequences)
    slices = len(orders[0])
    probabilities, horizon = check_prior(prior, slices), default_horizon(slices, horizon)
    value = objective(orders, probabilities, horizon, seed)
    bound = _bound(probabilities, len(orders), horizon, value.mean)
    return Assessment(value.mean, value.standard_error, bound)


def _bound(probabilities: Probabilities, budget: int, horizon: int, value: float) -> float:
    slices = len(probabilities)
    everything = everything_bound(probabilities, horizon)
    if value >= everything - EQUAL:
        return everything
    if is_uniform(probabilities):
        bound = min(everything, uniform_bound(slices, budget, horizon))
        if slices > EXACT_SLICES or value >= bound - EQUAL:
            return bound
    if slices <= EXACT_SLICES:
        return exact_optimum(probabilities, budget, horizon).value
    if slices <= PRICED_SLICES:
        return min(everything, lagrangian_bound(probabilities, budget, horizon, value))
    return everything
