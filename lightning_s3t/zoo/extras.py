"""Packages that only parts of the zoo need: the extras of lightning-s3t install them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_utilities.core.imports import RequirementCache

from lightning_s3t.errors import ConfigurationError


def import_extra(module: str, what: str, extra: str) -> Any:
    """Import a module of a package that an extra installs.

    Args:
        module: Its name.
        what: The feature that needs it, in the plural.
        extra: The extra of lightning-s3t that installs it.

    Raises:
        ConfigurationError: It is not installed.

    Example:
        >>> import_extra("crystal_ball", "Forecasts", "magic")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Forecasts need crystal_ball: pip install "lightning-s3t[magic]"
    """
    package = module.partition(".")[0]
    # whether it is installed, not whether it works: an error of an installed package is raised unchanged
    if not RequirementCache(module=package):
        raise ConfigurationError(f'{what} need {package}: pip install "lightning-s3t[{extra}]"')
    return import_module(module)
