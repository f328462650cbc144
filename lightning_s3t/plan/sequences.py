"""Planners: which orders of its slices a shard is trained on, for a given budget."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.units import Sequence


def plan_sequences(
    sequences: str | Iterable[Iterable[int]], slices: int, budget: int, seed: int = 0
) -> tuple[Sequence, ...]:
    """Returns the orders that a budget pays for.

    Args:
        sequences: The name of a planner ("cyclic", "random", "all", "sisa"), or the orders themselves.
        slices: Number of slices, L.
        budget: Number of orders, B.
        seed: For the planners that draw.

    Raises:
        ConfigurationError: The planner is unknown, the budget is above what exists, or an order is no permutation.

    Example:
        >>> plan_sequences("cyclic", slices=3, budget=2)
        ((0, 1, 2), (1, 2, 0))
    """
    if not isinstance(sequences, str):
        return check_sequences(sequences, slices, budget)
    if sequences not in PLANNERS:
        raise ConfigurationError(
            f"There is no planner {sequences!r}. Expected `sequences` to be one of {', '.join(PLANNERS)}, or the "
            "orders themselves."
        )
    return PLANNERS[sequences](slices, budget, seed)


def check_sequences(sequences: Iterable[Iterable[int]], slices: int, budget: int) -> tuple[Sequence, ...]:
    """Checks orders that were given by hand.

    Args:
        sequences: The orders.
        slices: Number of slices, L.
        budget: How many there must be.

    Raises:
        ConfigurationError: An order is no permutation of the slices, is there twice, or the number is off.

    Example:
        >>> check_sequences([[0, 1], [1, 0]], slices=2, budget=2)
        ((0, 1), (1, 0))
    """
    orders = tuple(tuple(order) for order in sequences)
    for order in orders:
        if sorted(order) != list(range(slices)):
            raise ConfigurationError(
                f"The sequence {order} is no order of {slices} slices. Expected each of 0 to {slices - 1} once."
            )
    if len(set(orders)) < len(orders) or len(orders) != budget:
        raise ConfigurationError(
            f"Found {len(orders)} sequences, {len(set(orders))} of them different. Expected as many different ones as "
            f"the budget, {budget}."
        )
    return orders


def cyclic(slices: int, budget: int, seed: int = 0) -> tuple[Sequence, ...]:
    """Rotations: every slice comes first before any comes first again (the paper's section 3.3).

    Beyond L orders, the rotation goes on in the suffixes: the orders that start with each slice continue with the
    rotations of the rest, and so on, until all L! are there. Any budget takes a beginning of one list, so raising it
    only adds orders.

    Args:
        slices: Number of slices, L.
        budget: Number of orders, B, up to L!.
        seed: Without effect.

    Raises:
        ConfigurationError: There are not so many orders.

    Example:
        >>> cyclic(3, 4)
        ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1))
    """
    _check_budget(slices, budget, math.factorial(slices), "cyclic")
    return tuple(_cyclic_order(number, tuple(range(slices))) for number in range(budget))


def random_orders(slices: int, budget: int, seed: int = 0) -> tuple[Sequence, ...]:
    """Different orders, drawn at random.

    Args:
        slices: Number of slices, L.
        budget: Number of orders, B, up to L!.
        seed: What they are drawn from.

    Raises:
        ConfigurationError: There are not so many orders.

    Example:
        >>> len(set(random_orders(4, 24)))
        24
    """
    _check_budget(slices, budget, math.factorial(slices), "random")
    generator = random.Random(f"s3t-sequences-{seed}")
    found: dict[Sequence, None] = {}
    while len(found) < budget:
        found[tuple(generator.sample(range(slices), slices))] = None
    return tuple(found)


def all_orders(slices: int, budget: int, seed: int = 0) -> tuple[Sequence, ...]:
    """Every order there is; the budget must be L!.

    Args:
        slices: Number of slices, L.
        budget: L!.
        seed: Without effect.

    Raises:
        ConfigurationError: The budget is another.

    Example:
        >>> len(all_orders(3, 6))
        6
    """
    if budget != math.factorial(slices):
        raise ConfigurationError(
            f"The planner 'all' has {math.factorial(slices)} orders of {slices} slices but the budget is {budget}. Set "
            f"budget={math.factorial(slices)}, or choose another planner."
        )
    return tuple(itertools.permutations(range(slices)))


def sisa(slices: int, budget: int, seed: int = 0) -> tuple[Sequence, ...]:
    """One order: SISA training (Bourtoule et al., arXiv 1912.03817), the baseline.

    Args:
        slices: Number of slices, L.
        budget: 1.
        seed: Without effect.

    Raises:
        ConfigurationError: The budget is above 1.

    Example:
        >>> sisa(3, 1)
        ((0, 1, 2),)
    """
    _check_budget(slices, budget, 1, "sisa")
    return (tuple(range(slices)),)


PLANNERS: dict[str, Callable[[int, int, int], tuple[Sequence, ...]]] = {
    "cyclic": cyclic,
    "random": random_orders,
    "all": all_orders,
    "sisa": sisa,
}


def _cyclic_order(number: int, slices: Sequence) -> Sequence:
    if not slices:
        return ()
    turns, start = divmod(number, len(slices))
    rotated = slices[start:] + slices[:start]
    return (rotated[0], *_cyclic_order(turns, rotated[1:]))


def _check_budget(slices: int, budget: int, most: int, planner: str) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= most:
        raise ConfigurationError(
            f"The budget is {budget!r}, and the planner {planner!r} has {most} orders of {slices} slices. Expected a "
            f"budget from 1 to {most}."
        )
