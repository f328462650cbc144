"""The stored configs that a user trusts: by digest, in the home folder, where a store cannot write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_s3t.core.documents import canonical

_FILE = Path("lightning_s3t", "trusted_configs")


def is_trusted(options: Mapping[str, Any]) -> bool:
    """Return whether this user has trained with a config, or has said that it may be run.

    Args:
        options: `Store.options`.
    """
    try:
        return _digest(options) in _file().read_text().split()
    except (OSError, ValueError):
        return False


def trust(options: Mapping[str, Any]) -> None:
    """Record that a config may be run; if the record cannot be written, the user is asked again.

    Args:
        options: `Store.options`.
    """
    if is_trusted(options):
        return
    try:
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(_file(), "a+", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.seek(0)
            is_torn = not f"\n{file.read()}".endswith("\n")  # by a crash
            file.write("\n" * is_torn + f"{_digest(options)}\n")
    except OSError:
        pass


def _digest(options: Mapping[str, Any]) -> str:
    # everything that names something to import
    return hashlib.sha256(canonical([options.get("config"), options.get("classes")]).encode()).hexdigest()


def _file() -> Path:
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    # relative paths must be ignored: https://specifications.freedesktop.org/basedir-spec/latest
    return (given if given.is_absolute() else Path.home() / ".local" / "state") / _FILE
