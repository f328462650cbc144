"""Imports of an application's own classes and functions, by their import path."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_s3t.errors import ConfigurationError


def import_object(path: str, example: str) -> Any:
    """Import an object by its import path.

    Args:
        path: A module and a name in it, with a colon between them.
        example: A description of what is expected, for the message.

    Raises:
        ConfigurationError: The object does not exist.

    Example:
        >>> import_object("math:pi", "a number, as math:pi")
        3.141592653589793
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be imported: {error}. Expected the import path of {example}."
        ) from error
