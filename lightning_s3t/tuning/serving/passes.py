"""The shards' passes through the one network that they share: one after the other, or all of them together."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_s3t.errors import EnsembleError
from lightning_s3t.tuning.compiled import has_compiled_parts
from lightning_s3t.tuning.interception import Forward, intercepted
from lightning_s3t.tuning.nested import leaves_in, replace_leaves, replace_tensors, tensors_in
from lightning_s3t.tuning.serving.batched import BatchedPass, alike
from lightning_s3t.tuning.serving.caches import caches_in
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
    each form, against separate passes; if not, every shard has a whole pass. At the first call of each form it is also
    made sure that the adapters act: that no block computes past them.

    Every pass has its own copy of what the network is called with, so what one changes in place no other sees.

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
            caches: Each shard's own cache, by the `id` of the caller's that it stands behind.

        Raises:
            EnsembleError: A block computes past its adapters, or the call has something that cannot be copied.
        """
        try:
            if self._is_compiled():  # what is compiled does not ask who stands in
                return self._in_turn(forward, args, kwargs, shards, caches, share=False)
            form = self.form_of(args, kwargs, shards)
            if form in self._tried:
                self._tried.move_to_end(form)
                return self._as_tried(self._tried[form], forward, args, kwargs, shards, caches)
            found, answers = self._try(forward, args, kwargs, shards, caches)
            self._tried[form] = found
            if len(self._tried) > _FORMS:
                self._tried.popitem(last=False)
            return answers
        finally:
            self._swap.restore()

    def _as_tried(
        self,
        way: str,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Mapping[int, Any]],
    ) -> list[Any]:
        if way == "together":
            return self._together(forward, args, kwargs, shards)
        return self._in_turn(forward, args, kwargs, shards, caches, share=way == "shared")

    def _try(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Mapping[int, Any]],
    ) -> tuple[str, list[Any]]:
        """Finds out which way gives what separate passes give, and returns its answers."""
        alone = self._in_turn(forward, args, kwargs, shards, caches, share=False, watch=True)
        if len(shards) < 2 or caches_in(alone) or not _has_rows(args, kwargs):
            return "alone", alone  # a block that is passed over fills no cache
        if self._wants_together(args, kwargs):
            try:
                together = self._together(forward, args, kwargs, shards)
                if alike(alone, together, self.is_half()):
                    return "together", together
            except Exception:
                # whatever it is: a pass of its own for each shard is what the network is made for
                pass
        if not self._have_trunk(shards):
            return "alone", alone
        try:
            shared = self._in_turn(forward, args, kwargs, shards, caches, share=True)
        except Exception:
            return "alone", alone
        return ("shared" if _is_equal(alone, shared) else "alone"), alone

    def _in_turn(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Mapping[int, Any]],
        share: bool,
        watch: bool = False,
    ) -> list[Any]:
        stages = {shard: self._shards.survivors[shard].stage for shard in shards}
        order = sorted(shards, key=lambda shard: stages[shard])
        trunk = SharedTrunk(
            self._builder.root, self._builder.layers, [stages[shard] for shard in order] if share else []
        )
        answers = {}
        for shard in order:
            stand_ins = self._shards.stand_ins(shard)
            self._swap.install(stand_ins)
            own = _Copies({given: own[shard] for given, own in caches.items()})
            own_args, own_kwargs = own.of(args), own.of(kwargs)
            with trunk.next_pass(), self._watched(stand_ins, stages[shard]) if watch else nullcontext():
                answers[shard] = forward(*own_args, **own_kwargs)
            own.check_not_kept(answers[shard])
        return [answers[shard] for shard in shards]

    @contextmanager
    def _watched(self, stand_ins: Mapping[str, nn.Module], stage: int) -> Iterator[None]:
        """Makes sure that a block which is called while the block runs calls its adapters."""
        if self._builder.adapter is None:
            yield  # the blocks themselves stand in
            return
        groups = self._builder.layers.groups[:stage]
        blocks = [name for group in groups for name in group.modules]
        modules = {name: self._builder.root.get_submodule(name) for name in dict.fromkeys([*blocks, *stand_ins])}
        called: set[str] = set()

        def note(name: str, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            called.add(name)
            return own(*args, **kwargs)

        # no hooks: torch's fused encoder layers are not used where there is one
        with intercepted(modules, note):
            yield
        for block in blocks:
            inside = [name for name in stand_ins if name == block or name.startswith(f"{block}.")]
            if block in called and inside and not called.intersection(inside):
                raise EnsembleError(
                    f"{block} ({type(modules[block]).__name__}) computes its answer without calling its adapters "
                    f"({', '.join(inside[:3])}), so it would answer as if nothing had been trained. Expected a block "
                    "that calls its layers: turn off its fused or specialised inference path."
                )

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

    def form_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], shards: Sequence[int]) -> str:
        """Describes a call by what decides how it can be answered.

        Without what the arguments say: texts, for example, are not kept.

        Args:
            args: What the network is called with.
            kwargs: Likewise.
            shards: The shards that are asked.
        """
        stages = [self._shards.survivors[shard].stage for shard in shards]
        described = replace_tensors((args, kwargs), lambda _, t: (str(t.dtype), t.dim(), t.dim() and len(t)))
        text = repr((stages, torch.is_grad_enabled(), _without_contents(described)))
        return hashlib.sha256(text.encode()).hexdigest()

    def _wants_together(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._how == "auto":
            return any(tensor.is_cuda for _, tensor in tensors_in((args, kwargs)))
        return self._how == "together"

    def is_half(self) -> bool:
        """Returns whether the network computes in half precision."""
        kinds = {tensor.dtype for tensor in self._builder.root.parameters()}
        devices = {tensor.device.type for tensor in self._builder.root.parameters()}
        kinds |= {torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}
        return bool(kinds & {torch.float16, torch.bfloat16})

    def _is_compiled(self) -> bool:
        if torch.compiler.is_compiling():
            return True
        network = self._builder.root.get_submodule(self._builder.layers.network)
        return has_compiled_parts(network)


class _Copies:
    """What one pass is given of a call: caches of its own, and copies of everything that it could change."""

    def __init__(self, caches: Mapping[int, Any]) -> None:
        self._own = dict(caches)  # by the id of what was given, which the caller holds meanwhile
        self._objects: list[Any] = []

    def of(self, arguments: Any) -> Any:
        """Returns the arguments of a call for this pass."""
        return replace_leaves(arguments, lambda _, leaf: self._copy(leaf))

    def check_not_kept(self, answer: Any) -> None:
        """Refuses an answer that hands a copy back: what goes from call to call would be one shard's alone."""
        returned = {id(leaf) for _, leaf in leaves_in(answer)}
        for own in self._objects:
            if id(own) in returned:
                raise EnsembleError(
                    f"The network carries an object of {type(own).__name__} from one call to the next, which is no "
                    "cache of the kind that an ensemble can give every shard its own of. Call the network without it "
                    "(transformers: use_cache=False)."
                )

    def _copy(self, leaf: Any) -> Any:
        if id(leaf) in self._own:
            return self._own[id(leaf)]
        if leaf is None or isinstance(leaf, (bool, int, float, str, nn.Module, torch.Generator)):
            return leaf
        if isinstance(leaf, Tensor):
            # compiled graphs take what is changed in place apart by themselves
            own: Any = leaf if torch.compiler.is_compiling() else leaf.clone()
        else:
            own = self._copy_object(leaf)
            self._objects += [own] if own is not leaf else []
        self._own[id(leaf)] = own
        return own

    def _copy_object(self, leaf: Any) -> Any:
        try:
            return leaf if torch.compiler.is_compiling() else copy.deepcopy(leaf)
        except Exception as error:
            raise EnsembleError(
                f"The network is called with an object of {type(leaf).__name__} that cannot be copied ({error}), so "
                "every shard would see what the others do to it. Leave it out, or give it a __deepcopy__."
            ) from error


def _has_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(tensor.dim() and len(tensor) for _, tensor in tensors_in((args, kwargs)))


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
