"""A complete copy of a module: its hooks write to the copy too."""

from __future__ import annotations

import copy
from types import CellType, FunctionType
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_module(module: M) -> M:
    """Return a deep copy of a module, with hooks that know the copy and not the original.

    `copy.deepcopy` leaves functions as they are, so a hook created in `__init__`, such as a lambda over `self`, would
    keep writing to the original.

    Args:
        module: The module.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> _ = net[0].register_forward_hook(lambda module, args, answer, net=net: setattr(net, "seen", True))
        >>> import torch
        >>> copied = copy_module(net)
        >>> _ = copied(torch.ones(1))
        >>> hasattr(copied, "seen"), hasattr(net, "seen")
        (True, False)
    """
    copies: dict[int, Any] = {}
    copied = copy.deepcopy(module, copies)
    for part in copied.modules():
        for name, hooks in vars(part).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                for key, hook in hooks.items():
                    hooks[key] = _rebound(hook, copies)
    return copied


def _rebound(hook: Any, copies: dict[int, Any]) -> Any:
    """Return a function with copies of the objects in its closure and defaults."""
    if not isinstance(hook, FunctionType):
        return hook  # a bound method and a partial are copied by deepcopy
    cells, defaults = hook.__closure__ or (), hook.__defaults__ or ()
    own = [*(_copy_of_cell(cell, copies) for cell in cells), *(copies.get(id(value), value) for value in defaults)]
    if all(mine is theirs for mine, theirs in zip(own, (*cells, *defaults), strict=True)):
        return hook
    made = FunctionType(
        hook.__code__, hook.__globals__, hook.__name__, tuple(own[len(cells) :]) or None, tuple(own[: len(cells)])
    )
    made.__kwdefaults__ = hook.__kwdefaults__
    vars(made).update(vars(hook))
    return made


def _copy_of_cell(cell: CellType, copies: dict[int, Any]) -> CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    return CellType(copies[id(value)]) if id(value) in copies else cell
