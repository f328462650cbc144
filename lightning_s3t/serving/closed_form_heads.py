"""The closed-form heads that answer together with the shards' own heads: the floor, and those on survivors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_s3t.core.floor import PRETRAINED, FloorPart
from lightning_s3t.serving.served_shards import FLOOR, ServedShards
from lightning_s3t.store.heads.certified import LinearHead
from lightning_s3t.store.heads.feature_sums import FeatureSums
from lightning_s3t.store.heads.floor import FloorState
from lightning_s3t.tuning.head_features import HeadFeatures
from lightning_s3t.tuning.ridge import RidgeHead, answer_linearly, solve_head

Load = Callable[[str], tuple[str, FeatureSums | LinearHead] | None]
"""Reads the sums of a source, or its certified head, with the digest; None if a request has removed them."""


class ClosedFormHeads(nn.Module):
    """Keeps the closed-form heads of the served units, each solved at its first use.

    The floor is a shard of its own, which adapts no layer group. A head on a survivor answers together with the head
    that the unit was trained with: the shard's answer is the mean of the two. The heads move between devices with the
    module that they are registered in.

    Args:
        shards: The served shards.
        load: Reads sums.
    """

    def __init__(self, shards: ServedShards, load: Load) -> None:
        super().__init__()
        self._shards = (shards,)  # not registered twice
        self._load = load
        self._heads: dict[int, _Head] = {}  # by shard

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        # the served units are in the store, and a checkpoint would outlive a request
        found: dict[str, Any] = kwargs.get("destination") or (args[0] if args else {})
        return found

    def renew(self, heads: Mapping[str, FloorState]) -> dict[int, str]:
        """Load the store's current heads. Those that may no longer serve are overwritten in memory.

        Args:
            heads: The heads, by the source of their features. Those that lack rows, or have none, do not answer.

        Returns:
            The digest of the sums that the head of each shard is solved from; that of the floor too.
        """
        shards = self._shards[0]
        sources = {shard: str(unit) for shard, unit in shards.survivors.items()} | {FLOOR: PRETRAINED}
        found = {shard: heads[source] for shard, source in sources.items() if source in heads}
        found = {shard: state for shard, state in found.items() if state.serves}
        for shard in [shard for shard in self._heads if shard not in found or not self._is_in_place(shard, sources)]:
            self._drop(shard)
        with torch.inference_mode(False), torch.no_grad():  # to be changed later on, outside of it
            for shard, state in found.items():
                if shard not in self._heads:
                    self._heads[shard] = self._place(shard, sources[shard], state.part)
                self._heads[shard].want(state.served)
        return {shard: head.wanted for shard, head in self._heads.items()}

    @torch.compiler.disable  # no part of a compiled network
    def solve(self, shards: Iterable[int]) -> None:
        """Solve the heads of shards that are about to answer, where their sums have changed.

        Args:
            shards: The shards.
        """
        for shard in shards:
            head = self._heads.get(shard)
            if head is None or head.solved == head.wanted:
                continue
            found = self._load(head.source)
            if found is None:  # a request has reached the unit; the answer is computed again without it
                self._drop(shard)
                continue
            digest, contents = found
            head.layer.load(contents if isinstance(contents, LinearHead) else solve_head(contents))
            # a fit may have changed them since `renew`; a request may bring the earlier ones back, bit for bit
            head.solved = head.wanted = digest

    def _is_in_place(self, shard: int, sources: Mapping[int, str]) -> bool:
        head = self._heads[shard]
        if sources.get(shard) != head.source:
            return False
        return head.own is None or head.own in set(self._shards[0].get_submodule(str(shard)).modules())

    def _place(self, shard: int, source: str, part: FloorPart) -> _Head:
        """Put a head where the linear layer of a shard is."""
        shards = self._shards[0]
        if shard == FLOOR:
            features = shards.features_of(part)
            layer = RidgeLayer(part.width, part.outputs, features.of).requires_grad_(False)
            shards.serve_floor(part.layer, layer)
            features.attach()
            return _Head(source, layer, features=features)
        layer = RidgeLayer(part.width, part.outputs).requires_grad_(False)
        own = shards.linear_of(shard, part.layer)
        layer.to(next(own.parameters()).device)
        self.add_module(str(shard), layer)

        def answer_too(_: nn.Module, args: tuple[Any, ...], answer: Tensor) -> Tensor:
            return (answer + layer(args[0])) / 2

        return _Head(source, layer, own, own.register_forward_hook(answer_too))

    def _drop(self, shard: int) -> None:
        head = self._heads.pop(shard)
        head.layer.clear()
        if head.features is not None:
            head.features.detach()
        if head.hook is None:
            self._shards[0].drop(FLOOR)
        else:
            head.hook.remove()
            delattr(self, str(shard))


class RidgeLayer(nn.Linear):
    """A closed-form head where the network has a linear layer; networks look at its attributes.

    Args:
        width: The number of features.
        outputs: The number of outputs.
        features: Computes them from the input of the linear layer; None if they are this input.
    """

    def __init__(self, width: int, outputs: int, features: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(width, outputs)
        self._features = features

    def load(self, head: RidgeHead | LinearHead) -> None:
        """Load a head, in place of the previous one.

        Args:
            head: The head.
        """
        with torch.inference_mode(False), torch.no_grad():
            # in place: the head before must not stay in freed memory
            self.weight.copy_(head.weight)
            self.bias.copy_(head.bias)

    def clear(self) -> None:
        """Overwrite its weights."""
        with torch.inference_mode(False), torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs if self._features is None else self._features(inputs)
        return answer_linearly(features, self.weight, self.bias).to(inputs.dtype)


@dataclass
class _Head:
    """A head that is served.

    Attributes:
        source: The source of its features.
        layer: The layer that answers.
        own: The layer that the unit's own head ends in; None for the floor.
        hook: The hook that makes it answer together with the replaced layer.
        features: Computes the floor's features; None for a head on a unit.
        wanted: The digest of the sums to solve it from, or of the certified head.
        solved: That of those that it was solved from.
    """

    source: str
    layer: RidgeLayer
    own: nn.Module | None = None
    hook: RemovableHandle | None = None
    features: HeadFeatures | None = None
    wanted: str = ""
    solved: str | None = None

    def want(self, digest: str) -> None:
        """Note what to solve it from; a head that was solved from anything else is overwritten at once."""
        self.wanted = digest
        if self.solved not in (None, digest):
            self.layer.clear()
            self.solved = None
