"""The shards' passes through the one network that they share: one after the other, or all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from lightning_s3t.tuning.interception import Forward
from lightning_s3t.tuning.serving.batched import BatchedPass, alike
from lightning_s3t.tuning.serving.served import ServedShards
from lightning_s3t.tuning.serving.trunk import SharedTrunk
from lightning_s3t.tuning.stages import StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap

Passes = Literal["auto", "in_turn", "together"]
PASSES: tuple[str, ...] = get_args(Passes)


class ShardPasses:
    """Asks one network for the answers of several shards.

    In turn, every shard's stand-ins are put in place for a pass of its own, and what lies below all that the shards
    adapt is computed once: the answers are bit for bit those of separate passes. Together, the rows are repeated for
    every shard and go through the network at once, which is faster where a pass is bound by the number of its
    operations and not by their size: on a GPU with few rows. Whether a network can be asked so (whether its rows are
    its first dimension everywhere) is tried at the first call of each form; if not, it is asked in turn.

    Args:
        builder: What built the stand-ins.
        shards: The stand-ins.
        how: "in_turn", "together", or "auto" for together on a GPU and in turn elsewhere.
    """

    def __init__(self, builder: StageBuilder, shards: ServedShards, how: Passes) -> None:
        self._builder = builder
        self._swap = ModuleSwap(builder.root, builder.originals)
        self._shards = shards
        self._how = how
        self._agreed: dict[Any, bool] = {}

    def run(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Any],
    ) -> list[Any]:
        """Returns the shards' answers, in the order of the shards.

        Args:
            forward: The network's own forward.
            args: What it is called with.
            kwargs: Likewise.
            shards: The shards.
            caches: The key-value cache of each shard, where the call has one.
        """
        try:
            if not caches and len(shards) > 1 and self._wants_together(args, kwargs):
                return self._together(forward, args, kwargs, shards)
            return self._in_turn(forward, args, kwargs, shards, caches)
        finally:
            self._swap.restore()

    def _in_turn(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Any],
    ) -> list[Any]:
        stages = {shard: self._shards.survivors[shard].stage for shard in shards}
        order = sorted(shards, key=lambda shard: stages[shard])
        # a block that is passed over fills no cache, and what is compiled does not ask who stands in
        shared = not caches and not self._is_compiled()
        trunk = SharedTrunk(
            self._builder.root, self._builder.layers, [stages[shard] for shard in order] if shared else []
        )
        answers = {}
        for shard in order:
            self._swap.install(self._shards.stand_ins(shard))
            own = {**kwargs, "past_key_values": caches[shard]} if caches else kwargs
            with trunk.next_pass():
                answers[shard] = forward(*args, **own)
        return [answers[shard] for shard in shards]

    def _together(
        self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]
    ) -> list[Any]:
        stages = [self._shards.survivors[shard].stage for shard in shards]
        form = (tuple(stages), _form_of((args, kwargs)))
        if self._agreed.get(form, True):
            batched = BatchedPass(
                self._builder.root,
                self._builder.layers,
                self._builder.originals,
                [self._shards.stand_ins(shard) for shard in shards],
                stages,
            )
            self._swap.install(batched.modules)
            try:
                answers = batched(forward, args, kwargs)
            except Exception:
                # whatever it is: a pass of its own for each shard is what the network is made for
                self._agreed[form] = False
            else:
                if form in self._agreed:
                    return answers
                in_turn = self._in_turn(forward, args, kwargs, shards, {})
                self._agreed[form] = alike(in_turn, answers, self._is_half())
                return answers if self._agreed[form] else in_turn  # as at all later calls, to the bit
        return self._in_turn(forward, args, kwargs, shards, {})

    def _wants_together(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._how == "auto":
            devices: set[str] = set()
            apply_to_collection((args, kwargs), Tensor, lambda tensor: devices.add(tensor.device.type))
            return "cuda" in devices and not self._is_compiled()
        return self._how == "together" and not self._is_compiled()

    def _is_half(self) -> bool:
        kinds = {tensor.dtype for tensor in self._builder.root.parameters()}
        devices = {tensor.device.type for tensor in self._builder.root.parameters()}
        kinds |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
        return bool(kinds & {torch.float16, torch.bfloat16})

    def _is_compiled(self) -> bool:
        if torch.compiler.is_compiling():
            return True
        network = self._builder.root.get_submodule(self._builder.layers.network)
        return any(_is_compiled(module) for module in network.modules())


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, OptimizedModule) or module._compiled_call_impl is not None


def _form_of(arguments: Any) -> str:
    """Describes a call: which arguments it has, and which tensors have as many rows as the first."""
    rows: list[int] = []

    def describe(tensor: Tensor) -> str:
        if tensor.dim():
            rows.append(len(tensor))
        return f"{tensor.dtype}, {tensor.dim()}, {bool(tensor.dim()) and len(tensor) == rows[0]}"

    return repr(apply_to_collection(arguments, Tensor, describe))
