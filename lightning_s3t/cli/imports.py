"""Imports of an application's own classes, as from a script in the current folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from lightning_s3t.core.imports import import_object
from lightning_s3t.errors import ConfigurationError


def import_path(path: str, example: str) -> Any:
    """Import an object by its import path, as a script in the current folder would.

    Args:
        path: A module and a name in it, with a colon between them.
        example: An example, for the message.

    Raises:
        ConfigurationError: It cannot be imported.

    Example:
        >>> import_path("math:pi", "a number")
        3.141592653589793
    """
    see_current_folder()
    return import_object(path, example)


def see_current_folder() -> None:
    """Add the current folder to the path: a console script has its own folder there, not the one in which it runs.

    Except the folder of a store, which a stranger may have filled.
    """
    from lightning_s3t.store.ledgers.address import has_ledger  # loads torch, which not every command needs

    # not "": configs are parsed with their own folder as the current one
    folder = os.getcwd()
    if folder not in sys.path and not any(has_ledger(around) for around in _around(folder)):
        sys.path.insert(0, folder)


def check_not_on_path(store: Path) -> None:
    """Check that Python does not look for modules in a store.

    Args:
        store: The store's folder.

    Raises:
        ConfigurationError: It does.
    """
    for entry in sys.path:
        if store.resolve() in _around(entry):
            raise ConfigurationError(
                f"Python looks for modules in {entry or os.getcwd()}, which is inside the store {store}: any code in "
                "there would be run. Run the command from another folder, and remove the store from PYTHONPATH."
            )


def _around(folder: str) -> list[Path]:
    """Return a folder and all its parents."""
    resolved = Path(folder or ".").resolve()
    return [resolved, *resolved.parents]
