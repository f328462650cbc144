"""The registry of methods: by name, for configs and command lines."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods.method import UnlearningMethod

METHODS: dict[str, type[UnlearningMethod]] = {}
"""All methods by name."""

_Method = TypeVar("_Method", bound=UnlearningMethod)


def register_method(kind: type[_Method]) -> type[_Method]:
    """Make a method known by its name; a class decorator.

    Args:
        kind: The method.

    Raises:
        ConfigurationError: Another class has the name.

    Example:
        >>> from lightning_s3t.methods.retrain import Retrain
        >>> register_method(Retrain) is METHODS["retrain"]
        True
    """
    known = METHODS.setdefault(kind.name, kind)
    if known is not kind:
        raise ConfigurationError(f"{kind.__name__} is named {kind.name!r}, which is {known.__name__}'s name.")
    return kind


def method_of(given: UnlearningMethod | str | Mapping[str, Any]) -> UnlearningMethod:
    """Return the method that an argument specifies.

    Args:
        given: A method; its name; or a mapping with its name as "name" and its arguments.

    Raises:
        ConfigurationError: The method does not exist, or does not take an argument.

    Example:
        >>> method_of({"name": "ssd", "alpha": 5.0})
        SSD(alpha=5.0, lam=1.0, batch_size=1)
    """
    if isinstance(given, UnlearningMethod):
        return given
    arguments = {"name": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("name", None)
    if name not in METHODS:
        raise ConfigurationError(f"There is no method {name!r}. Expected one of {', '.join(sorted(METHODS))}.")
    try:
        inspect.signature(METHODS[name]).bind(**arguments)
    except TypeError as error:
        raise ConfigurationError(
            f"The method {name!r} does not take these arguments: {error}. Expected "
            f"{name}{inspect.signature(METHODS[name])}."
        ) from error
    return METHODS[name](**arguments)
