"""The arguments of S3T, checked one by one before anything else happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_s3t.errors import ConfigurationError

CHOICES: dict[str, tuple[str, ...]] = {
    "data": ("cumulative", "disjoint"),
    "epochs": ("full", "sisa"),
    "isolation": ("auto", "forkserver", "fork", "none"),
}


def check_arguments(shards: Any, slices: Any, budget: Any, seed: Any, parallel_units: Any = 1) -> None:
    """Checks S3T's numbers.

    Args:
        shards: Number of shards.
        slices: Number of slices.
        budget: Number of orders, or a mapping with their cost, which the planner checks.
        seed: The root seed.
        parallel_units: How many units are trained at the same time.

    Raises:
        ConfigurationError: One is no integer, or is out of range.

    Example:
        >>> check_arguments(shards=5, slices=4, budget=0, seed=0)
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected argument `budget` to be a positive integer but got 0.
    """
    counts = {"shards": shards, "slices": slices, "parallel_units": parallel_units} | (
        {} if isinstance(budget, Mapping) else {"budget": budget}
    )
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"Expected argument `{name}` to be a positive integer but got {value!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigurationError(f"Expected argument `seed` to be a non-negative integer but got {seed!r}.")


def check_choices(**given: Any) -> None:
    """Checks those of S3T's arguments that are one of a few words.

    Args:
        given: The arguments by name.

    Raises:
        ConfigurationError: One is another.
    """
    for name, choice in given.items():
        if choice not in CHOICES[name]:
            raise ConfigurationError(f"Expected argument `{name}` to be one of {CHOICES[name]} but got {choice!r}.")
