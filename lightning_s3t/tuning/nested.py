"""Tensors in what modules take and return: tuples, lists and dicts of them, one within the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Path = tuple[str | int, ...]


def tensors_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Returns the tensors in a value, each with the path to it.

    Args:
        value: A tensor, or tuples, lists and mappings of tensors and other things.
        path: What the paths begin with.

    Example:
        >>> import torch
        >>> [path for path, _ in tensors_in((torch.zeros(1), {"mask": torch.ones(1), "cache": None}))]
        [(0,), (1, 'mask')]
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from tensors_in(part, (*path, name))
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from tensors_in(part, (*path, number))


def replace_tensors(value: Any, replace: Callable[[Path, Tensor], Any], path: Path = ()) -> Any:
    """Returns a value like another, with other tensors in it.

    Args:
        value: A tensor, or tuples, lists and mappings of tensors and other things.
        replace: Takes a tensor's path and the tensor, and returns what shall be there.
        path: What the paths begin with.

    Example:
        >>> import torch
        >>> replace_tensors([torch.zeros(2), "x"], lambda path, tensor: tuple(tensor.shape))
        [(2,), 'x']
    """
    if isinstance(value, Tensor):
        return replace(path, value)
    if isinstance(value, Mapping):
        parts = {name: replace_tensors(part, replace, (*path, name)) for name, part in value.items()}
        return parts if type(value) is dict else type(value)(**parts)  # transformers' outputs are mappings too
    if isinstance(value, (tuple, list)):
        items = [replace_tensors(part, replace, (*path, number)) for number, part in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def is_plain(value: Any) -> bool:
    """Says whether a value is made of tensors, numbers, text and None alone, in tuples, lists and mappings.

    Args:
        value: Anything.

    Example:
        >>> is_plain(({"x": None}, [1])), is_plain(object())
        (True, False)
    """
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, str))
