"""Dotted paths of modules, compared by whole parts: `blocks.1` is not part of `blocks.10`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn


def join(parent: str, name: str) -> str:
    """Return the path of a child.

    Args:
        parent: The parent's path, "" for the root.
        name: The child's name or path below it.

    Example:
        >>> join("", "a"), join("a.b", "c")
        ('a', 'a.b.c')
    """
    return f"{parent}.{name}" if parent and name else parent or name


def lies_in(path: str, parent: str) -> bool:
    """Return whether a path equals a parent or is below it.

    Args:
        path: A path.
        parent: The parent's path; everything is below "".

    Example:
        >>> lies_in("blocks.1.attn", "blocks.1"), lies_in("blocks.10", "blocks.1")
        (True, False)
    """
    return not parent or path == parent or path.startswith(f"{parent}.")


def lies_in_any(path: str, parents: Iterable[str]) -> bool:
    """Return whether a path equals one of several or is below one.

    Args:
        path: A path.
        parents: The paths of the parents.
    """
    return any(lies_in(path, parent) for parent in parents)


def common_parent(paths: Sequence[str]) -> str:
    """Return the path of the smallest module that holds all of several.

    Args:
        paths: At least one path.

    Example:
        >>> common_parent(["net.blocks.1", "net.head"]), common_parent(["net.head"])
        ('net', 'net')
    """
    split = [path.split(".")[:-1] for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module has any parameter.

    Args:
        module: The module.
    """
    return any(True for _ in module.parameters())
