"""Checks of the arguments of methods."""

from __future__ import annotations

from typing import Any

from lightning_s3t.errors import ConfigurationError


def check_count(name: str, value: Any) -> None:
    """Raise unless an argument is a positive integer.

    Args:
        name: The argument's name.
        value: What was given.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"Expected argument `{name}` to be a positive integer but got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raise unless an argument is a positive number; infinity is one.

    Args:
        name: The argument's name.
        value: What was given.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigurationError(f"Expected argument `{name}` to be a positive number but got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless an argument is one of several words.

    Args:
        name: The argument's name.
        value: What was given.
        choices: What it may be.

    Raises:
        ConfigurationError: It is not.
    """
    if value not in choices:
        raise ConfigurationError(f"Expected argument `{name}` to be one of {choices} but got {value!r}.")
