"""Planners that need no prior: rotations, random sequences, all sequences, and SISA's one sequence."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family, check_budget
from lightning_s3t.plan.units import SliceSequence


def cyclic(slices: int, budget: int, seed: int = 0) -> Family:
    """Rotations: every slice comes first before any comes first again (the paper's section 3.3).

    Beyond L sequences, the suffixes are rotated: the sequences that start with each slice continue with the rotations
    of the rest, and so on, until all L! exist. Any budget takes a beginning of one list, so raising it only adds
    sequences.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B, up to L!.
        seed: Without effect.

    Raises:
        ConfigurationError: The budget exceeds the number of sequences.

    Example:
        >>> cyclic(3, 4)
        ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1))
    """
    check_budget(slices, budget, math.factorial(slices), "cyclic")
    return tuple(_rotation(number, tuple(range(slices))) for number in range(budget))


def random_sequences(slices: int, budget: int, seed: int = 0) -> Family:
    """Different sequences, drawn at random.

    Args:
        slices: Number of slices, L.
        budget: Number of sequences, B, up to L!.
        seed: Seed of the random draws.

    Raises:
        ConfigurationError: The budget exceeds the number of sequences.

    Example:
        >>> len(set(random_sequences(4, 24)))
        24
    """
    check_budget(slices, budget, math.factorial(slices), "random")
    generator = random.Random(f"s3t-sequences-{seed}")
    found: dict[SliceSequence, None] = {}
    while len(found) < budget:
        found[tuple(generator.sample(range(slices), slices))] = None
    return tuple(found)


def all_sequences(slices: int, budget: int, seed: int = 0) -> Family:
    """Every sequence there is; the budget must be L!.

    Args:
        slices: Number of slices, L.
        budget: L!.
        seed: Without effect.

    Raises:
        ConfigurationError: The budget is another.

    Example:
        >>> len(all_sequences(3, 6))
        6
    """
    if budget != math.factorial(slices):
        raise ConfigurationError(
            f"The planner 'all' has {math.factorial(slices)} sequences of {slices} slices but the budget is {budget}. "
            f"Set budget={math.factorial(slices)}, or choose another planner."
        )
    return tuple(itertools.permutations(range(slices)))


def sisa(slices: int, budget: int, seed: int = 0) -> Family:
    """One sequence: SISA training (Bourtoule et al., arXiv 1912.03817), the baseline.

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
    check_budget(slices, budget, 1, "sisa")
    return (tuple(range(slices)),)


def distinct_sequences(sequences: Iterable[SliceSequence], slices: int, budget: int) -> Family:
    """Returns the sequences without repeats, filled up to the budget with cyclic ones that are not among them.

    Args:
        sequences: Sequences of the slices.
        slices: Number of slices, L.
        budget: The wanted number of sequences, at most L!.

    Example:
        >>> distinct_sequences([(1, 0, 2), (1, 0, 2)], slices=3, budget=2)
        ((1, 0, 2), (0, 1, 2))
    """
    found = dict.fromkeys(sequences)
    number = 0
    while len(found) < budget:
        found[_rotation(number, tuple(range(slices)))] = None
        number += 1
    return tuple(found)[:budget]


def _rotation(number: int, slices: SliceSequence) -> SliceSequence:
    if not slices:
        return ()
    turns, start = divmod(number, len(slices))
    rotated = slices[start:] + slices[:start]
    return (rotated[0], *_rotation(turns, rotated[1:]))
