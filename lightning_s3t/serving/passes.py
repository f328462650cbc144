"""The shards' passes through the one network that they share: sequential, or batched into one."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_s3t.serving.batched import BatchedPass, allclose_nested
from lightning_s3t.serving.caches import caches_in
from lightning_s3t.serving.override_forward import Forward
from lightning_s3t.serving.sequential import SequentialPasses
from lightning_s3t.serving.served_shards import ServedShards
from lightning_s3t.tuning.compiled import has_compiled_parts
from lightning_s3t.tuning.nested import tensors_in
from lightning_s3t.tuning.stages import StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap

Passes = Literal["auto", "sequential", "batched"]
PASSES: tuple[str, ...] = get_args(Passes)
# the ways to answer a form of call: a whole pass for each shard, passes that share their trunk, or one pass of all rows
_Way = Literal["alone", "shared", "batched"]
_FORMS = 1000


class ShardPasses:
    """Asks one network for the answers of several shards.

    In sequential passes, every shard's replacement modules are put in place for its own pass, and the layers below all
    adapted ones are computed once: the outputs are bitwise those of separate passes. Batched, the rows are repeated for
    every shard and go through the network at once, which is faster where a pass is bound by the number of its
    operations and not by their size: on a GPU with few rows. Whether a network supports this (rows are the first
    dimension everywhere, and blocks only return a value) is tested against separate passes at the first call of each
    form; if not, every shard has a whole pass. The first call of each form also makes sure that the adapters act: that
    no block computes past them.

    Args:
        builder: The builder of the replacement modules.
        shards: The shards, with their replacement modules.
        how: "sequential", "batched", or "auto" for batched on a GPU and sequential elsewhere.
    """

    def __init__(self, builder: StageBuilder, shards: ServedShards, how: Passes) -> None:
        self._builder = builder
        self._swap = ModuleSwap(builder.root, builder.originals)
        self._shards = shards
        self._how = how
        self._sequential = SequentialPasses(builder, self._swap, shards)
        self._tried: OrderedDict[str, _Way] = OrderedDict()

    def run(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Mapping[int, Any]],
    ) -> list[Any]:
        """Return the shards' answers, in the order of the shards.

        Args:
            forward: The network's own forward.
            args: The arguments of its call.
            kwargs: Likewise.
            shards: The shards.
            caches: Each shard's own cache, by the `id` of the caller's that it stands behind.

        Raises:
            EnsembleError: A block bypasses its adapters, or an argument of the call cannot be copied.
        """
        try:
            if self._is_compiled():  # compiled code does not see the replaced modules
                return self._sequential.run(forward, args, kwargs, shards, caches)
            form = self.form_of(args, kwargs, shards)
            way = self._tried.get(form)
            if way is None:
                self._tried[form], answers = self._try(forward, args, kwargs, shards, caches)
                if len(self._tried) > _FORMS:
                    self._tried.popitem(last=False)
                return answers
            self._tried.move_to_end(form)
            if way == "batched":
                return self._batched(forward, args, kwargs, shards)
            return self._sequential.run(forward, args, kwargs, shards, caches, share=way == "shared")
        finally:
            self._swap.restore()

    def _try(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Mapping[int, Any]],
    ) -> tuple[_Way, list[Any]]:
        """Find a way whose outputs equal those of separate passes, and return its outputs."""
        alone = self._sequential.run(forward, args, kwargs, shards, caches, watch=True)
        if len(shards) < 2 or caches_in(alone) or not _has_rows(args, kwargs):
            return "alone", alone  # a block that is passed over fills no cache
        if self._wants_batched(args, kwargs):
            try:
                batched = self._batched(forward, args, kwargs, shards)
                if allclose_nested(alone, batched, self.is_half()):
                    return "batched", batched
            except Exception:
                # whatever the error is: separate passes are what the network was made for
                pass
        if not self._have_trunk(shards):
            return "alone", alone
        try:
            shared = self._sequential.run(forward, args, kwargs, shards, caches, share=True)
        except Exception:
            return "alone", alone
        return ("shared" if _is_equal(alone, shared) else "alone"), alone

    def _batched(
        self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]
    ) -> list[Any]:
        batched = BatchedPass(
            self._builder.root,
            self._builder.layers,
            self._builder.originals,
            [self._shards.stand_ins(shard) for shard in shards],
            list(self._shards.depths(shards).values()),
        )
        self._swap.install(batched.modules)
        return batched(forward, args, kwargs)

    def _have_trunk(self, shards: Sequence[int]) -> bool:
        """Return whether any two shards leave a layer group alone."""
        return sorted(self._shards.depths(shards).values())[1] < len(self._builder.layers.groups)

    def form_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]) -> str:
        """Describe the form of a call: what decides how it can be answered.

        The contents of the arguments are left out: texts, for example, are not kept.

        Args:
            args: The arguments of the network's call.
            kwargs: Likewise.
            shards: The shards that are asked.
        """
        depths = list(self._shards.depths(shards).values())
        text = repr((depths, torch.is_grad_enabled(), _form(args), _form(kwargs)))
        return hashlib.sha256(text.encode()).hexdigest()

    def _wants_batched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._how == "auto":
            return any(tensor.is_cuda for _, tensor in tensors_in((args, kwargs)))
        return self._how == "batched"

    def is_half(self) -> bool:
        """Return whether the network computes in half precision."""
        kinds = {tensor.dtype for tensor in self._builder.root.parameters()}
        devices = {tensor.device.type for tensor in self._builder.root.parameters()}
        kinds |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
        return bool(kinds & {torch.float16, torch.bfloat16})

    def _is_compiled(self) -> bool:
        if torch.compiler.is_compiling():
            return True
        return has_compiled_parts(self._builder.network)


def _has_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(tensor.dim() and len(tensor) for _, tensor in tensors_in((args, kwargs)))


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), value.dim(), value.dim() and len(value)
    if isinstance(value, Mapping):
        return {name: _form(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_form(part) for part in value]
    return value if value is None or isinstance(value, (bool, int)) else type(value).__name__


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two answers are bitwise equal, treating NaN as equal to NaN."""
    mine, others = dict(tensors_in(one)), dict(tensors_in(other))
    return mine.keys() == others.keys() and all(
        tensor.shape == others[path].shape and torch.equal(tensor.nan_to_num(), others[path].nan_to_num())
        for path, tensor in mine.items()
    )
