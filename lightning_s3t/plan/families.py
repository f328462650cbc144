"""Families: the sequences that a shard is trained on, checked where callers give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.units import SliceSequence

Family: TypeAlias = tuple[SliceSequence, ...]


def check_sequences(sequences: Iterable[Iterable[int]], slices: int, budget: int) -> Family:
    """Check sequences that the caller gave.

    Args:
        sequences: The sequences.
        slices: Number of slices, L.
        budget: The expected number of sequences.

    Raises:
        ConfigurationError: A sequence is not a permutation of the slices, appears twice, or the number is wrong.

    Example:
        >>> check_sequences([[0, 1], [1, 0]], slices=2, budget=2)
        ((0, 1), (1, 0))
    """
    family = tuple(tuple(sequence) for sequence in sequences)
    for sequence in family:
        if sorted(sequence) != list(range(slices)):
            raise ConfigurationError(
                f"The sequence {sequence} is not a permutation of {slices} slices. Expected each of 0 to "
                f"{slices - 1} once."
            )
    if len(set(family)) < len(family) or len(family) != budget:
        raise ConfigurationError(
            f"Found {len(family)} sequences, {len(set(family))} of them different. Expected {budget} different ones, "
            "the budget."
        )
    return family


def check_family(sequences: Iterable[Iterable[int]]) -> Family:
    """Check sequences without a given number of slices or budget.

    Args:
        sequences: Sequences of the slices.

    Raises:
        ConfigurationError: There are no sequences, one is not a permutation of the slices of the first, or one appears
            twice.

    Example:
        >>> check_family([[0, 1], [1, 0]])
        ((0, 1), (1, 0))
    """
    family = [tuple(sequence) for sequence in sequences]
    if not family or not family[0]:
        raise ConfigurationError("No sequences were given. Expected at least one sequence of at least one slice.")
    return check_sequences(family, slices=len(family[0]), budget=len(family))


def check_budget(slices: int, budget: int, most: int, planner: str) -> None:
    """Raise an error for a budget that a planner cannot meet.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B.
        most: The number of sequences that the planner has.
        planner: Its name.

    Raises:
        ConfigurationError: The budget is not an integer from 1 to `most`.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= most:
        raise ConfigurationError(
            f"The budget is {budget!r}, and the planner {planner!r} has {most} sequences of {slices} slices. "
            f"Expected a budget from 1 to {most}."
        )
