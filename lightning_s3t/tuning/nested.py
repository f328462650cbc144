"""Tensors in the arguments and outputs of modules: nested tuples, lists and mappings.

Custom code, since callers need the path of each leaf and all mappings traversed, but caches and other objects left
whole: `lightning_utilities.apply_to_collection` does not give paths and unpacks dataclasses; torch's pytree unpacks
registered types (caches of some releases of transformers) and leaves other mappings whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

TensorPath = tuple[str | int, ...]


def leaves_in(value: Any, path: TensorPath = ()) -> list[tuple[TensorPath, Any]]:
    """Return everything in a value that is not a tuple, list or mapping, each with the path to it.

    Args:
        value: Anything.
        path: Prefix of the paths.

    Example:
        >>> leaves_in((1, {"mask": None}))
        [((0,), 1), ((1, 'mask'), None)]
    """
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    else:
        return [(path, value)]
    return [leaf for name, part in parts for leaf in leaves_in(part, (*path, name))]


def tensors_in(value: Any) -> list[tuple[TensorPath, Tensor]]:
    """Return the tensors in a value, each with the path to it.

    Args:
        value: A tensor, or tuples, lists and mappings of tensors and other things.

    Example:
        >>> import torch
        >>> [path for path, _ in tensors_in((torch.zeros(1), {"mask": torch.ones(1), "cache": None}))]
        [(0,), (1, 'mask')]
    """
    return [(path, leaf) for path, leaf in leaves_in(value) if isinstance(leaf, Tensor)]


def replace_leaves(value: Any, replace: Callable[[TensorPath, Any], Any], path: TensorPath = ()) -> Any:
    """Return a value like another, with other leaves (see `leaves_in`) in it.

    Args:
        value: Anything.
        replace: Takes a leaf's path and the leaf, and returns its replacement.
        path: Prefix of the paths.

    Example:
        >>> replace_leaves([1, {"x": 2}], lambda path, leaf: leaf + 1)
        [2, {'x': 3}]
    """
    if isinstance(value, Mapping):
        parts = {name: replace_leaves(part, replace, (*path, name)) for name, part in value.items()}
        return parts if type(value) is dict else _mapping_like(value, parts)
    if isinstance(value, (tuple, list)):
        items = [replace_leaves(part, replace, (*path, number)) for number, part in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return replace(path, value)


def with_leaves(value: Any, leaves: Iterable[Any]) -> Any:
    """Return a value like another, with these leaves in it, in the order of `leaves_in`.

    Args:
        value: Anything.
        leaves: As many as it has.

    Example:
        >>> with_leaves([1, {"x": 2}], "ab")
        ['a', {'x': 'b'}]
    """
    rest = iter(leaves)
    return replace_leaves(value, lambda path, leaf: next(rest))


def replace_tensors(value: Any, replace: Callable[[TensorPath, Tensor], Any]) -> Any:
    """Return a value like another, with other tensors in it.

    Args:
        value: A tensor, or tuples, lists and mappings of tensors and other things.
        replace: Takes a tensor's path and the tensor, and returns its replacement.

    Example:
        >>> import torch
        >>> replace_tensors([torch.zeros(2), "x"], lambda path, tensor: tuple(tensor.shape))
        [(2,), 'x']
    """
    return replace_leaves(value, lambda path, leaf: replace(path, leaf) if isinstance(leaf, Tensor) else leaf)


def has_plain_leaves(value: Any) -> bool:
    """Return whether a value is made of tensors, numbers, text and None alone, in tuples, lists and mappings.

    Args:
        value: Anything.

    Example:
        >>> has_plain_leaves(({"x": None}, [1])), has_plain_leaves(object())
        (True, False)
    """
    return all(leaf is None or isinstance(leaf, (Tensor, bool, int, float, str)) for _, leaf in leaves_in(value))


def _mapping_like(value: Any, parts: dict[Any, Any]) -> Any:
    # a copy keeps more than a mapping's items: transformers' outputs have fields, its encodings have offsets
    made = copy.copy(value)
    for name, part in parts.items():
        made[name] = part
    return made
