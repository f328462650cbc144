"""Checks of the arguments of methods."""

from __future__ import annotations

from typing import Any

from lightning_s3t.errors import ConfigurationError


def check_count(name: str, value: Any) -> None:
    """Raise unless an argument is a positive integer.

    Args:
        name: The argument's name.
        value: The given value.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"Expected argument `{name}` to be a positive integer but got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raise unless an argument is a positive number; infinity is one.

    Args:
        name: The argument's name.
        value: The given value.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigurationError(f"Expected argument `{name}` to be a positive number but got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless an argument is one of several words.

    Args:
        name: The argument's name.
        value: The given value.
        choices: The allowed values.

    Raises:
        ConfigurationError: It is not.
    """
    if value not in choices:
        raise ConfigurationError(f"Expected argument `{name}` to be one of {choices} but got {value!r}.")


def check_nonnegative(name: str, value: Any) -> None:
    """Raise unless an argument is a finite number that is not negative.

    Args:
        name: The argument's name.
        value: The given value.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ConfigurationError(f"Expected argument `{name}` to be a number of at least 0 but got {value!r}.")


def check_share(name: str, value: Any, zero: bool = False) -> None:
    """Raise unless an argument is a share: above 0, or at least 0, and at most 1.

    Args:
        name: The argument's name.
        value: The given value.
        zero: Whether it may be 0.

    Raises:
        ConfigurationError: It is not.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (value == 0 and not zero):
        least = "of at least 0" if zero else "above 0"
        raise ConfigurationError(f"Expected argument `{name}` to be a share {least} and at most 1 but got {value!r}.")
