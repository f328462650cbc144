"""Packages that only some of lightning_s3t needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_s3t.errors import ConfigurationError


def import_optional(package: str, what: str, extra: str) -> Any:
    """Imports a package of an extra.

    Args:
        package: Its name.
        what: What needs it, in the plural.
        extra: The extra of lightning-s3t that installs it.

    Raises:
        ConfigurationError: It is not installed.

    Example:
        >>> import_optional("crystal_ball", "Forecasts", "magic")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Forecasts need crystal_ball: pip install "lightning-s3t[magic]"
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise
        raise ConfigurationError(f'{what} need {package}: pip install "lightning-s3t[{extra}]"') from error
