"""Imports of an application's own classes, as a script in the current folder would make them."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from lightning_s3t.errors import ConfigurationError


def import_path(path: str, example: str) -> Any:
    """Imports what an import path names.

    Args:
        path: A module and a name in it, with a colon between them.
        example: What is expected, for the message.

    Raises:
        ConfigurationError: There is no such thing.

    Example:
        >>> import_path("math:pi", "a number")
        3.141592653589793
    """
    see_current_folder()
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be imported: {error}. Expected the import path of {example}."
        ) from error


def see_current_folder() -> None:
    """Puts the current folder on the path: a console script has its own folder there, not the one that it is run in."""
    # not "": configs are parsed with their own folder as the current one
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
