"""Families: the orders that a shard is trained on, checked where callers give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.units import SliceSequence

Family: TypeAlias = tuple[SliceSequence, ...]


def check_sequences(sequences: Iterable[Iterable[int]], slices: int, budget: int) -> Family:
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


def check_family(sequences: Iterable[Iterable[int]]) -> Family:
    """Checks orders of which neither the number of slices nor the budget was given.

    Args:
        sequences: Orders of the slices.

    Raises:
        ConfigurationError: There are none, one is no permutation of the slices of the first, or one is there twice.

    Example:
        >>> check_family([[0, 1], [1, 0]])
        ((0, 1), (1, 0))
    """
    orders = [tuple(order) for order in sequences]
    if not orders or not orders[0]:
        raise ConfigurationError("There are no sequences. Expected at least one order of at least one slice.")
    return check_sequences(orders, slices=len(orders[0]), budget=len(orders))


def check_budget(slices: int, budget: int, most: int, planner: str) -> None:
    """Refuses a budget that a planner cannot meet.

    Args:
        slices: Number of slices, L.
        budget: Number of orders, B.
        most: How many the planner has.
        planner: Its name.

    Raises:
        ConfigurationError: The budget is no integer from 1 to `most`.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= most:
        raise ConfigurationError(
            f"The budget is {budget!r}, and the planner {planner!r} has {most} orders of {slices} slices. Expected a "
            f"budget from 1 to {most}."
        )
