"""The shards' passes through the one network that they share: one after the other, or all of them together."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from lightning_s3t.tuning.compiled import has_compiled_parts
from lightning_s3t.tuning.interception import Forward
from lightning_s3t.tuning.nested import replace_tensors, tensors_in
from lightning_s3t.tuning.serving.batched import BatchedPass, alike
from lightning_s3t.tuning.serving.served import ServedShards
from lightning_s3t.tuning.serving.trunk import SharedTrunk
from lightning_s3t.tuning.stages import StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap

Passes = Literal["auto", "in_turn", "together"]
PASSES: tuple[str, ...] = get_args(Passes)
_FORMS = 1000


class ShardPasses:
    """Asks one network for the answers of several shards.

    In turn, every shard's stand-ins are put in place for a pass of its own, and what lies below all that the shards
    adapt is computed once: the answers are bit for bit those of separate passes. Together, the rows are repeated for
    every shard and go through the network at once, which is faster where a pass is bound by the number of its
    operations and not by their size: on a GPU with few rows. Whether a network can be asked so (whether its rows are
    its first dimension everywhere, whether its blocks do nothing but return something) is tried at the first call of
    each form, against separate passes; if not, every shard has a whole pass.

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
        self._tried: OrderedDict[str, str] = OrderedDict()

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
            if caches or len(shards) < 2 or self._is_compiled():
                # a block that is passed over fills no cache, and what is compiled does not ask who stands in
                return self._in_turn(forward, args, kwargs, shards, caches, share=False)
            form = self._form_of(args, kwargs, shards)
            if form is None:
                return self._in_turn(forward, args, kwargs, shards, caches, share=False)
            if form in self._tried:
                self._tried.move_to_end(form)
                return self._as_tried(self._tried[form], forward, args, kwargs, shards)
            found, answers = self._try(forward, args, kwargs, shards)
            self._tried[form] = found
            if len(self._tried) > _FORMS:
                self._tried.popitem(last=False)
            return answers
        finally:
            self._swap.restore()

    def _as_tried(
        self, way: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]
    ) -> list[Any]:
        if way == "together":
            return self._together(forward, args, kwargs, shards)
        return self._in_turn(forward, args, kwargs, shards, {}, share=way == "shared")

    def _try(
        self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]
    ) -> tuple[str, list[Any]]:
        """Finds out which way gives what separate passes give, and returns its answers."""
        alone = self._in_turn(forward, args, kwargs, shards, {}, share=False)
        if self._wants_together(args, kwargs):
            try:
                together = self._together(forward, args, kwargs, shards)
                if alike(alone, together, self._is_half()):
                    return "together", together
            except Exception:
                # whatever it is: a pass of its own for each shard is what the network is made for
                pass
        if not self._have_trunk(shards):
            return "alone", alone
        try:
            shared = self._in_turn(forward, args, kwargs, shards, {}, share=True)
        except Exception:
            return "alone", alone
        return ("shared" if _is_equal(alone, shared) else "alone"), alone

    def _in_turn(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Any],
        share: bool,
    ) -> list[Any]:
        stages = {shard: self._shards.survivors[shard].stage for shard in shards}
        order = sorted(shards, key=lambda shard: stages[shard])
        trunk = SharedTrunk(
            self._builder.root, self._builder.layers, [stages[shard] for shard in order] if share else []
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
        batched = BatchedPass(
            self._builder.root,
            self._builder.layers,
            self._builder.originals,
            [self._shards.stand_ins(shard) for shard in shards],
            [self._shards.survivors[shard].stage for shard in shards],
        )
        self._swap.install(batched.modules)
        return batched(forward, args, kwargs)

    def _have_trunk(self, shards: Sequence[int]) -> bool:
        """Says whether any two shards leave a layer group alone."""
        stages = sorted(self._shards.survivors[shard].stage for shard in shards)
        return stages[1] < len(self._builder.layers.groups)

    def _form_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]) -> str | None:
        """Describes a call by what decides how it can be answered; None for one without rows to try it on.

        Without what the arguments say: texts, for example, are not kept.
        """
        tensors = [tensor for _, tensor in tensors_in((args, kwargs))]
        rows = next((len(tensor) for tensor in tensors if tensor.dim()), 0)
        if rows == 0:
            return None
        stages = [self._shards.survivors[shard].stage for shard in shards]
        described = replace_tensors((args, kwargs), lambda _, t: (str(t.dtype), t.dim(), t.dim() and len(t)))
        text = repr((stages, torch.is_grad_enabled(), _without_contents(described)))
        return hashlib.sha256(text.encode()).hexdigest()

    def _wants_together(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._how == "auto":
            return any(tensor.is_cuda for _, tensor in tensors_in((args, kwargs)))
        return self._how == "together"

    def _is_half(self) -> bool:
        kinds = {tensor.dtype for tensor in self._builder.root.parameters()}
        devices = {tensor.device.type for tensor in self._builder.root.parameters()}
        kinds |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
        return bool(kinds & {torch.float16, torch.bfloat16})

    def _is_compiled(self) -> bool:
        if torch.compiler.is_compiling():
            return True
        network = self._builder.root.get_submodule(self._builder.layers.network)
        return has_compiled_parts(network)


def _without_contents(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_contents(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_without_contents(part) for part in value]
    return value if value is None or isinstance(value, (bool, int)) else type(value).__name__


def _is_equal(one: Any, other: Any) -> bool:
    """Says whether two answers are the same to the bit; not a number is equal to itself."""
    mine, others = dict(tensors_in(one)), dict(tensors_in(other))
    return mine.keys() == others.keys() and all(
        tensor.shape == others[path].shape and torch.equal(tensor.nan_to_num(), others[path].nan_to_num())
        for path, tensor in mine.items()
    )
