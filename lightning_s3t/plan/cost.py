"""What training some orders costs, and the best orders for a cost."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.checks import check_family
from lightning_s3t.plan.lattice import Lattice
from lightning_s3t.plan.prior import Prior, check_prior
from lightning_s3t.plan.rotations import cyclic
from lightning_s3t.plan.search import LATTICE_SLICES, optimal
from lightning_s3t.plan.units import SliceSequence
from lightning_s3t.plan.valuation import default_horizon

Planner = Callable[[int], tuple[SliceSequence, ...]]
Data = Literal["cumulative", "disjoint"]
Epochs = Literal["full", "sisa"]

ROUNDING = 1e-9
REBUILDS = 30


@dataclass(frozen=True)
class Cost:
    """What it takes to train one shard on some orders.

    Attributes:
        units: Number of units: of different prefixes of the orders.
        fine_tunes: Samples seen, in multiples of one full fine-tune (all slices for as many epochs).
    """

    units: int
    fine_tunes: float


def cost_of(sequences: Iterable[Iterable[int]], data: Data = "cumulative", epochs: Epochs = "full") -> Cost:
    """Returns what training some orders costs; orders with a common prefix share its units.

    Args:
        sequences: Orders of the slices, all different.
        data: A stage trains on all slices of its prefix ("cumulative") or on the last one ("disjoint").
        epochs: "full" for as many epochs a stage as a fine-tune has, "sisa" for 2/(L+1) of them.

    Raises:
        ConfigurationError: An order is no permutation or is there twice, or an argument is unknown.

    Example:
        >>> cost_of([(0, 1, 2), (0, 2, 1)])
        Cost(units=5, fine_tunes=3.666...)
    """
    orders = check_family(sequences)
    slices = len(orders[0])
    prices = _prices(slices, data, epochs)
    units = {order[:stage] for order in orders for stage in range(1, slices + 1)}
    return Cost(len(units), math.fsum(prices[len(unit) - 1] for unit in units))


def optimal_within(
    slices: int,
    units: int | None = None,
    fine_tunes: float | None = None,
    data: Data = "cumulative",
    epochs: Epochs = "full",
    seed: int = 0,
    prior: Prior | None = None,
    horizon: int | None = None,
    keep: Iterable[SliceSequence] = (),
) -> tuple[SliceSequence, ...]:
    """Returns the best orders found whose training costs no more than a limit for each shard.

    Orders with a common prefix share units, so that for one cost there may be few orders that differ from the start, or
    more of them that part late. Up to 14 slices, orders are added by what they give for their cost, each parting from
    what is there wherever that pays most, and branches are torn down and built again; the result is at least as good
    as `optimal` and rotation with as many orders as the cost allows. Beyond 14 slices it is the better of those two.

    Args:
        slices: Number of slices, L.
        units: At most so many units a shard.
        fine_tunes: At most so many samples a shard, in multiples of one full fine-tune.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
        seed: For the draws of the search.
        prior: Probability that a request is for each slice; None for equal ones.
        horizon: Number of requests to look ahead; None for L - 1.
        keep: Orders that are trained already: as many as the limit pays for come first, as they are, and the rest is
            added beside them (up to 14 slices).

    Raises:
        ConfigurationError: Not exactly one limit is given, or it does not pay for one order.

    Example:
        >>> found = optimal_within(4, units=10)
        >>> len(found), cost_of(found).units
        (3, 10)
    """
    prices, limit = _limit(slices, units, fine_tunes, data, epochs)
    probabilities, horizon = check_prior(prior, slices), default_horizon(slices, horizon)
    draw = random.Random(f"s3t-cost-{seed}").random
    kept = _paid_for(keep, prices, limit)
    if kept:
        return _grow(kept, Lattice(probabilities, horizon), prices, limit) if slices <= LATTICE_SLICES else kept
    whole = [
        _as_many(lambda budget: optimal(slices, budget, seed, prior, horizon), prices, limit),
        _as_many(lambda budget: cyclic(slices, budget), prices, limit),
    ]
    if slices > LATTICE_SLICES:
        return whole[0]
    lattice = Lattice(probabilities, horizon)
    families = [_grow(start, lattice, prices, limit) for start in (*whole, ())]
    best = max(families, key=lambda orders: _value(lattice, orders))
    for _ in range(REBUILDS if len(best) > 1 else 0):
        stay = [order for order in best if draw() < 0.6]
        other = _grow(tuple(stay), lattice, prices, limit)
        if _value(lattice, other) > _value(lattice, best) + ROUNDING:
            best = other
    return best


def _prices(slices: int, data: Data, epochs: Epochs) -> NDArray[np.float64]:
    if data not in ("cumulative", "disjoint") or epochs not in ("full", "sisa"):
        raise ConfigurationError(
            f"Expected `data` to be 'cumulative' or 'disjoint', and `epochs` to be 'full' or 'sisa', but got {data!r} "
            f"and {epochs!r}."
        )
    stages = np.arange(1, slices + 1)
    prices = stages / slices if data == "cumulative" else np.full(slices, 1 / slices)
    return prices * 2 / (slices + 1) if epochs == "sisa" else prices


def _total(orders: Iterable[SliceSequence], prices: NDArray[np.float64]) -> float:
    units = {order[:stage] for order in orders for stage in range(1, len(order) + 1)}
    return math.fsum(prices[len(unit) - 1] for unit in units)


def _paid_for(orders: Iterable[SliceSequence], prices: NDArray[np.float64], limit: float) -> tuple[SliceSequence, ...]:
    found: list[SliceSequence] = []
    for order in orders:
        if _total([*found, order], prices) > limit:
            break
        found.append(order)
    return tuple(found)


def _value(lattice: Lattice, orders: Iterable[SliceSequence]) -> float:
    return lattice.value(np.max([lattice.profile(order) for order in orders], axis=0))


def as_many_as(
    planner: Planner,
    slices: int,
    units: int | None = None,
    fine_tunes: float | None = None,
    data: Data = "cumulative",
    epochs: Epochs = "full",
) -> tuple[SliceSequence, ...]:
    """Returns as many of a planner's orders as a limit pays for.

    Args:
        planner: Gives the orders for a budget.
        slices: Number of slices, L.
        units: As in `optimal_within`.
        fine_tunes: As in `optimal_within`.
        data: As in `cost_of`.
        epochs: As in `cost_of`.

    Raises:
        ConfigurationError: Not exactly one limit is given, or it does not pay for one order.

    Example:
        >>> as_many_as(lambda budget: cyclic(3, budget), slices=3, units=6)
        ((0, 1, 2), (1, 2, 0))
    """
    return _as_many(planner, *_limit(slices, units, fine_tunes, data, epochs))


def _limit(
    slices: int, units: int | None, fine_tunes: float | None, data: Data, epochs: Epochs
) -> tuple[NDArray[np.float64], float]:
    if (units is None) == (fine_tunes is None):
        raise ConfigurationError("Expected exactly one of `units` and `fine_tunes`.")
    prices = np.ones(slices) if units is not None else _prices(slices, data, epochs)
    limit = float(units if units is not None else fine_tunes or 0) + ROUNDING
    if not float(prices.sum()) <= limit < math.inf:
        name, given = ("units", units) if units is not None else ("fine_tunes", fine_tunes)
        raise ConfigurationError(
            f"The limit is {name}={given!r}, and one order of {slices} slices costs {prices.sum():g}. Expected a "
            "finite limit that pays for one order."
        )
    return prices, limit


def _as_many(planner: Planner, prices: NDArray[np.float64], limit: float) -> tuple[SliceSequence, ...]:
    # without common prefixes so many orders are paid for at the least; common ones may pay for more
    slices = len(prices)
    budget = min(max(int(limit // prices.sum()), 1), math.factorial(slices))
    found = planner(budget)
    while budget < math.factorial(slices):
        more = planner(budget + 1)
        if _total(more, prices) > limit:
            break
        found, budget = more, budget + 1
    return found


def _grow(
    orders: tuple[SliceSequence, ...], lattice: Lattice, prices: NDArray[np.float64], limit: float
) -> tuple[SliceSequence, ...]:
    found = list(orders)
    together = lattice.nothing()
    for order in found:
        together = np.maximum(together, lattice.profile(order))
    spent = _total(found, prices)
    while True:
        nodes = {order[:stage] for order in found for stage in range(lattice.slices)} | {()}
        best: tuple[float, SliceSequence] | None = None
        for order, gain, node in lattice.best_completions(together, sorted(nodes)):
            price = float(prices[len(node) :].sum())
            if spent + price <= limit and gain > ROUNDING and (best is None or gain / price > best[0] + ROUNDING):
                best = (gain / price, order)
        if best is None:
            return tuple(found)
        found.append(best[1])
        together = np.maximum(together, lattice.profile(best[1]))
        spent = _total(found, prices)
