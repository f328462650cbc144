"""The closed-form heads that answer beside the shards' own: the floor, and those on survivors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_s3t.core.floor import PRETRAINED, FloorPart
from lightning_s3t.serving.served_shards import FLOOR, ServedShards
from lightning_s3t.store.feature_sums import FeatureSums
from lightning_s3t.store.floor import FloorState
from lightning_s3t.tuning.ridge import RidgeHead, answer_linearly, solve_head

Load = Callable[[str], FeatureSums | None]
"""Reads the sums of a source; None if a request has taken them along."""


class ClosedFormHeads(nn.Module):
    """Keeps the closed-form heads of what is served, each solved when it is asked for the first time.

    The floor is a shard of its own, which adapts no layer group. A head on a survivor answers together with the head
    that the unit was trained with: the shard's answer is the mean of the two. The heads move between devices with the
    module that they are registered in.

    Args:
        shards: What the shards serve.
        load: Reads sums.
    """

    def __init__(self, shards: ServedShards, load: Load) -> None:
        super().__init__()
        self._shards = (shards,)  # not registered twice
        self._load = load
        self._wanted: dict[int, str] = {}  # by shard, the digest of the sums
        self._solved: dict[int, str] = {}
        self._layers: dict[int, RidgeLayer] = {}
        self._hooks: dict[int, RemovableHandle] = {}
        self._sources: dict[int, str] = {}
        self._own: dict[int, nn.Module] = {}  # the layer that a unit's own head ends in

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        # what is served is in the store, and a checkpoint would outlive a request
        found: dict[str, Any] = kwargs.get("destination") or (args[0] if args else {})
        return found

    def renew(self, heads: Mapping[str, FloorState]) -> dict[int, str]:
        """Take up what a store has now. Heads on units that serve no more are overwritten in memory.

        Args:
            heads: By what their features are of. Those that lack rows do not answer.

        Returns:
            The digest of the sums that the head of each shard is solved from; that of the floor too.
        """
        shards = self._shards[0]
        sources = {shard: str(unit) for shard, unit in shards.survivors.items()} | {FLOOR: PRETRAINED}
        found = {shard: heads[source] for shard, source in sources.items() if source in heads}
        found = {shard: state for shard, state in found.items() if state.complete}
        for shard in [shard for shard in self._layers if shard not in found or not self._is_in_place(shard, sources)]:
            self._drop(shard)
        with torch.inference_mode(False), torch.no_grad():  # to be changed later on, outside of it
            for shard, state in found.items():
                if shard not in self._layers:
                    self._sources[shard] = sources[shard]
                    self._layers[shard] = self._place(shard, state.part)
        self._wanted = {shard: state.digest for shard, state in found.items()}
        return self._wanted

    def solve(self, shards: Iterable[int]) -> None:
        """Solve the heads of shards that are about to answer, where their sums have changed.

        Args:
            shards: The shards.
        """
        for shard in shards:
            wanted = self._wanted.get(shard)
            if wanted is None or self._solved.get(shard) == wanted:
                continue
            sums = self._load(self._sources[shard])
            if sums is None:  # a request has reached the unit; the answer is asked for again without it
                self._drop(shard)
                continue
            self._layers[shard].load(solve_head(sums))
            self._solved[shard] = wanted

    def _is_in_place(self, shard: int, sources: Mapping[int, str]) -> bool:
        if sources.get(shard) != self._sources[shard]:
            return False
        return shard == FLOOR or self._own[shard] in set(self._shards[0].get_submodule(str(shard)).modules())

    def _place(self, shard: int, part: FloorPart) -> RidgeLayer:
        """Put a head where the linear layer of a shard is."""
        shards = self._shards[0]
        layer = RidgeLayer(part.width, part.outputs).requires_grad_(False)
        if shard == FLOOR:
            shards.serve_floor(part.layer, layer)
            return layer
        own = shards.linear_of(shard, part.layer)
        layer.to(next(own.parameters()).device)
        self.add_module(str(shard), layer)

        def answer_too(_: nn.Module, args: tuple[Any, ...], answer: Tensor) -> Tensor:
            return (answer + layer(args[0])) / 2

        self._own[shard] = own
        self._hooks[shard] = own.register_forward_hook(answer_too)
        return layer

    def _drop(self, shard: int) -> None:
        if shard not in self._layers:
            return
        self._layers.pop(shard).clear()
        for noted in (self._wanted, self._solved, self._sources):
            noted.pop(shard, None)
        if shard == FLOOR:
            self._shards[0].drop(FLOOR)
        else:
            del self._own[shard]
            self._hooks.pop(shard).remove()
            delattr(self, str(shard))


class RidgeLayer(nn.Linear):
    """A closed-form head where the network has a linear layer; networks look at its attributes."""

    def load(self, head: RidgeHead) -> None:
        """Take up a head, in the place of the one before.

        Args:
            head: The head.
        """
        with torch.inference_mode(False), torch.no_grad():
            # in place: the head before must not stay in freed memory
            self.weight.copy_(head.weight)
            self.bias.copy_(head.bias)

    def clear(self) -> None:
        """Overwrite what it has."""
        with torch.inference_mode(False), torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    @override
    def forward(self, features: Tensor) -> Tensor:
        return answer_linearly(features, self.weight, self.bias)
