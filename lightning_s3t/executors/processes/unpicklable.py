"""Naming what cannot be sent to another process: pickle itself only names its type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lightning_s3t.executors.processes.package import try_to_pack


def find_unpicklable(
    parts: Mapping[str, object], replace: Mapping[int, object]
) -> tuple[str, object, Exception] | None:
    """Finds an object that cannot be pickled, as far inside as it can be named.

    Args:
        parts: Objects by name; they may refer to each other.
        replace: As for `pack`.

    Returns:
        Its path, itself and why; None if all can be pickled.

    Example:
        >>> import threading, types
        >>> holder = types.SimpleNamespace(transform={"train": threading.Lock()})
        >>> find_unpicklable({"data": holder}, {})[0]
        "data.transform['train']"
    """
    known = {**replace, **{id(part): None for part in parts.values()}}
    for name, part in parts.items():
        inside = {key: value for key, value in known.items() if key != id(part)}
        error = _error(part, inside)
        if error is not None:
            return _descend(name, part, error, known)
    return None


def _descend(path: str, found: object, error: Exception, known: dict[int, object]) -> tuple[str, object, Exception]:
    known = {**known, id(found): None}
    for name, child in _children(found):
        if id(child) in known:
            continue
        inner = _error(child, known)
        if inner is not None:
            return _descend(path + name, child, inner, known)
    return path, found, error


def _error(found: object, replace: Mapping[int, object]) -> Exception | None:
    try:
        try_to_pack(found, replace)
    except Exception as error:
        return error
    return None


def _children(found: object) -> Iterator[tuple[str, Any]]:
    if isinstance(found, dict):
        yield from ((f"[{key!r}]", value) for key, value in found.items())
    elif isinstance(found, (list, tuple)):
        yield from ((f"[{index}]", value) for index, value in enumerate(found))
    elif isinstance(found, nn.Module):
        yield from ((f".{name}", value) for name, value in found._modules.items())
        yield from ((f".{name}", value) for name, value in vars(found).items() if name not in {"_modules", "_trainer"})
    else:
        yield from ((f".{name}", value) for name, value in getattr(found, "__dict__", {}).items())
