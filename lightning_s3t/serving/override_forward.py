"""Overriding the forward of a network's blocks for as long as a block of code runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Answer = Callable[[str, Forward, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def override_forward(modules: Mapping[str, nn.Module], answer: Answer) -> Iterator[None]:
    """Let a function answer the calls of modules while the block runs.

    Hooks on the modules keep working, since only the forward behind them is replaced.

    Args:
        modules: The modules, by a name.
        answer: Takes a module's name, its own forward, and the call's arguments; returns the result of the call.

    Example:
        >>> net = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> with override_forward({"0": net[0]}, lambda name, forward, args, kwargs: name):
        ...     net[0](None)
        '0'
        >>> "forward" in vars(net[0])
        False
    """
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.forward = _through(name, module.forward, answer)
        yield
    finally:
        for name, module in modules.items():
            vars(module).pop("forward", None)
            own = before[name]
            if own is not None:  # a module may have had one set on it, as torch.compile and accelerate do
                module.forward = own


def _through(name: str, forward: Forward, answer: Answer) -> Forward:
    # some networks ask a block for the signature of its forward
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return answer(name, forward, args, kwargs)

    return call
