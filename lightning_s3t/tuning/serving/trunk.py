"""The trunk that several shards share: what lies below all that they adapt is computed once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_s3t.tuning.interception import Forward, intercepted
from lightning_s3t.tuning.layers import Layers
from lightning_s3t.tuning.nested import is_plain, replace_tensors, tensors_in


class SharedTrunk:
    """Passes of several shards over one network with one input, of which each computes what is its own.

    Blocks of a layer group that a shard does not adapt give the same for it as for every other shard that does not
    adapt the group. The first pass, that of the shard which adapts least, notes what they return; the next ones are
    given it. What a pass returns is bit for bit what it would have returned alone, with skip connections too, since
    every block that is passed over returns what it has returned before. Where a group's blocks are called after
    something that is adapted, as in a network of two branches, every pass computes them itself.

    Args:
        root: The module that the layers were found in.
        layers: Its layer groups and head.
        stages: The stages that the passes stand at, from the lowest up; none to share nothing.

    Example:
        >>> import torch
        >>> from lightning_s3t.tuning.layers import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> trunk, x = SharedTrunk(net, find_layers(net, slices=2), stages=[1, 1]), torch.ones(1, 4)
        >>> with trunk.next_pass():
        ...     first = net(x)
        >>> _ = net[0].weight.data.zero_()  # not asked again
        >>> with trunk.next_pass():
        ...     bool((net(x) == first).all())
        True
    """

    def __init__(self, root: nn.Module, layers: Layers, stages: Sequence[int]) -> None:
        self._root = root
        self._slices = len(layers.groups)
        self._group_of = layers.group_of()
        self._stages = list(stages)
        self._passes = 0
        self._order: list[int] = []  # the groups of the first pass's calls
        self._kept: dict[str, list[Any]] = {}
        self._usable = True

    @contextmanager
    def next_pass(self) -> Iterator[None]:
        """Lets the next shard's pass through the network share the trunk; its stand-ins are in place."""
        if len(self._stages) < 2 or self._stages[1] == self._slices:
            yield  # there is nothing that two of them leave alone
            return
        number, self._passes = self._passes, self._passes + 1
        stage = self._stages[number]
        if number == 0:
            with intercepted(self._modules(below=-1), self._note):
                yield
        elif self._can_share(stage):
            self._asked: dict[str, int] = {}
            with intercepted(self._modules(below=stage), self._replay):
                yield
        else:
            yield

    def _note(self, path: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = self._group_of[path]
        self._order.append(index)
        if index <= self._stages[1]:
            return forward(*args, **kwargs)
        before = _versions((args, kwargs))
        output = forward(*args, **kwargs)
        # what a block does besides returning something cannot be given to the next pass
        if is_plain(output) and _versions((args, kwargs)) == before:
            self._kept.setdefault(path, []).append(_copied(output))
        else:
            self._usable = False
        return output

    def _replay(self, path: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept, number = self._kept.get(path, []), self._asked.get(path, 0)
        self._asked[path] = number + 1
        return _copied(kept[number]) if number < len(kept) else forward(*args, **kwargs)

    def _can_share(self, stage: int) -> bool:
        if not self._usable:
            return False
        below = [place for place, index in enumerate(self._order) if index > stage]
        above = [place for place, index in enumerate(self._order) if index <= stage]
        return not below or not above or below[-1] < above[0]

    def _modules(self, below: int) -> dict[str, nn.Module]:
        """Returns the modules of the groups below one, each once."""
        found: dict[int, tuple[str, nn.Module]] = {}
        for path, index in self._group_of.items():
            if index > below:
                module = self._root.get_submodule(path)
                found.setdefault(id(module), (path, module))
        return dict(found.values())


def _copied(output: Any) -> Any:
    # the network may go on working on what a block has returned, in place
    return replace_tensors(output, lambda _, tensor: tensor.clone())


def _versions(arguments: Any) -> list[int]:
    return [tensor._version for _, tensor in tensors_in(arguments) if not tensor.is_inference()]
