"""The versions of the packages that take part in a training."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "lightning-s3t",
    "lightning",
    "torch",
    "peft",
    "torchmetrics",
    "timm",
    "transformers",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part.

    Example:
        >>> "torch" in versions()
        True
    """
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    # the packages' metadata are files, and a process has one version of each
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
