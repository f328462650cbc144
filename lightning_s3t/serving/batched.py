"""Several shards in one pass: their rows go through the network together, each past its own shard's adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.override_forward import Forward, override_forward
from lightning_s3t.tuning.adapters import ADAPTER_NAME
from lightning_s3t.tuning.layers import Layers

# how far two ways of summing up may differ, in parts of the largest number
_TOLERANCES, _HALF = {torch.float64: 1e-9, torch.float32: 1e-4}, 0.05


class ShardBatchedLayer(nn.Module):
    """Replaces one module in a pass of several shards: every shard's rows go through its own replacement.

    Rows come shard by shard. With LoRA there is one product with the pretrained weight for all rows, and LoRA's two
    small products are computed for all shards at once; other adapters and whole layers run one after another.

    Args:
        original: The network's own module.
        stand_ins: Each shard's module, or None where it has none.

    Example:
        >>> double = nn.Linear(1, 1, bias=False)
        >>> double.weight.data.fill_(2.0)
        tensor([[2.]])
        >>> ShardBatchedLayer(nn.Identity(), [double, None])(torch.tensor([[1.0], [1.0]])).tolist()
        [[2.0], [1.0]]
    """

    def __init__(self, original: nn.Module, stand_ins: Sequence[nn.Module | None]) -> None:
        super().__init__()
        # not registered: they are where they belong, and would be there twice
        self._original = (original,)
        self._stand_ins = tuple(stand_ins)
        own: list[Any] = [module for module in stand_ins if module is not None]
        first = list(stand_ins[: len(own)]) == own  # then the rows of those without are in one piece
        self._lora = own if first and all(map(_is_plain_lora, own)) else []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer for all shards' rows.

        Args:
            args: The arguments of the module that it replaces; the rows are in dimension 0.
            kwargs: Likewise.
        """
        if self._lora and len(args) == 1 and not kwargs and _fits(args[0], self._lora[0]):
            return self._through_lora(args[0])
        outputs, shards = [], len(self._stand_ins)
        for shard, module in enumerate(self._stand_ins):
            own_args, own_kwargs = _rows_of(shard, shards, (args, kwargs))
            called = self._original[0] if module is None else module
            outputs.append(called(*own_args, **own_kwargs))
        return cat_nested(outputs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # some networks ask a layer for its weight's type, or its width
            if name.startswith("_"):
                raise
            return getattr(self._original[0], name)

    def _through_lora(self, x: Tensor) -> Tensor:
        adapted = len(self._lora)
        down = torch.stack([layer.lora_A[ADAPTER_NAME].weight for layer in self._lora])
        up = torch.stack([layer.lora_B[ADAPTER_NAME].weight for layer in self._lora])
        rows = _rows_of_one(len(self._stand_ins), len(x)) * adapted
        y: Tensor = self._original[0](x)
        small = torch.bmm(x[:rows].reshape(adapted, -1, x.shape[-1]), down.transpose(1, 2))
        scaling = self._lora[0].scaling[ADAPTER_NAME]
        own = torch.baddbmm(y[:rows].reshape(adapted, -1, y.shape[-1]), small, up.transpose(1, 2), alpha=scaling)
        changed = own.view(rows, *y.shape[1:])
        return changed if rows == len(y) else torch.cat([changed, y[rows:]])


class BatchedPass:
    """One pass for several shards.

    Layers that no shard adapts are computed once for the plain rows; after them every shard has its own rows.

    Args:
        root: The module that the layers were found in.
        layers: Its layer groups and head.
        originals: The network's own modules that have replacements, by path.
        stand_ins: Each shard's replacement modules, by path.
        depths: Number of layer groups that each shard has changed.

    Attributes:
        modules: The modules that must be in the network for the pass, by path.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Layers,
        originals: Mapping[str, nn.Module],
        stand_ins: Sequence[Mapping[str, nn.Module]],
        depths: Sequence[int],
    ) -> None:
        # the shards that adapt a layer come before those that don't
        self._order = sorted(range(len(depths)), key=lambda shard: -depths[shard])
        self._highest = max(depths)
        self._root, self._layers = root, layers
        names = dict.fromkeys(name for shard in self._order for name in stand_ins[shard])
        self.modules: dict[str, nn.Module] = {
            name: ShardBatchedLayer(originals[name], [stand_ins[shard].get(name) for shard in self._order])
            for name in names
        }

    def __call__(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return every shard's answer.

        Args:
            forward: The network's own forward; `modules` are in place.
            args: The arguments of its call.
            kwargs: Likewise.

        Raises:
            EnsembleError: The call has no rows, or the output has a different number of rows.
        """
        rows, shards = _count_rows((args, kwargs)), len(self._order)
        repeat = _Repeat(rows, shards)
        trunk = self._trunk(forward, args, kwargs)
        asked: dict[str, int] = {}

        def replay(path: str, own: Forward, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            number = asked[path] = asked.get(path, -1) + 1
            return apply_to_collection(trunk[path][number], Tensor, repeat)

        with override_forward({path: self._root.get_submodule(path) for path in trunk}, replay):
            whole = forward(*apply_to_collection(args, Tensor, repeat), **apply_to_collection(kwargs, Tensor, repeat))
        answers: list[Any] = [None] * shards
        for place, shard in enumerate(self._order):
            answers[shard] = _answer_of(place, shards, rows, whole)
        return answers

    def _trunk(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        """Run the network on the plain rows, as far as no shard has adapted it."""
        group_of = self._layers.group_of()
        found: dict[str, list[Any]] = {}
        if self._highest == len(self._layers.groups):
            return found

        def note(path: str, own: Forward, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if group_of[path] <= self._highest:
                raise _StopForward
            output = own(*given, **named)
            found.setdefault(path, []).append(apply_to_collection(output, Tensor, torch.clone))
            return output

        modules = {path: self._root.get_submodule(path) for path in group_of}
        try:
            with override_forward(modules, note):
                forward(*args, **kwargs)
        except _StopForward:
            return found
        return {}


class _StopForward(BaseException):
    """The first block that a shard adapts is reached; no error, so that no network catches it."""


class _Repeat:
    """Repeats the rows of tensors that have them; everything else is unchanged."""

    def __init__(self, rows: int, shards: int) -> None:
        self._rows, self._shards = rows, shards

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != self._rows:
            return tensor
        return torch.cat([tensor] * self._shards)


def cat_nested(outputs: Sequence[Any]) -> Any:
    """Put the rows of several answers together.

    Args:
        outputs: Tensors, or tuples, lists and dicts of them, all of one form.

    Example:
        >>> cat_nested([(torch.ones(1), None), (torch.zeros(1), None)])
        (tensor([1., 0.]), None)
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        return type(first)(**{key: cat_nested([output[key] for output in outputs]) for key in first})
    if isinstance(first, (tuple, list)):
        parts = [cat_nested(column) for column in zip(*outputs, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def allclose_nested(one: Any, other: Any, half: bool = False) -> bool:
    """Return whether two answers are the same but for rounding.

    Args:
        one: Tensors, or tuples, lists and dicts of them.
        other: Likewise.
        half: Whether they were computed in half precision, whatever they are kept in.

    Example:
        >>> allclose_nested({"x": torch.ones(1)}, {"x": torch.ones(1) + 1e-7})
        True
        >>> allclose_nested([torch.ones(1)], [torch.zeros(1)])
        False
    """
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point():
            return bool((one == other).all())
        tolerance = _HALF if half else _TOLERANCES.get(one.dtype, _HALF)
        return one.numel() == 0 or bool((one - other).abs().max() <= tolerance * one.abs().max())
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(allclose_nested(one[name], other[name], half) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(allclose_nested(a, b, half) for a, b in zip(one, other, strict=True))
    if dataclasses.is_dataclass(one):
        names = {field.name for field in dataclasses.fields(one)}
        return all(allclose_nested(getattr(one, name), getattr(other, name), half) for name in names)
    return one is None or (isinstance(one, (bool, int, float, str)) and one == other)


def _count_rows(arguments: Any) -> int:
    found: list[int] = []
    apply_to_collection(arguments, Tensor, lambda tensor: found.append(len(tensor)) if tensor.dim() else None)
    if not found:
        raise EnsembleError("No argument of the network's call is a tensor with rows.")
    return found[0]


def _rows_of(shard: int, shards: int, arguments: Any) -> Any:
    rows = _count_rows(arguments)
    own = _rows_of_one(shards, rows)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[shard * own : (shard + 1) * own] if tensor.dim() and len(tensor) == rows else tensor

    return apply_to_collection(arguments, Tensor, cut)


def _rows_of_one(shards: int, rows: int) -> int:
    if rows % shards:
        raise EnsembleError(f"A part of the network is called with {rows} rows for {shards} shards.")
    return rows // shards


def _answer_of(place: int, shards: int, rows: int, whole: Any) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:  # a loss: the mean over all shards, as the ensemble's is
            return tensor
        if len(tensor) != rows * shards:
            raise EnsembleError(f"The network returned {len(tensor)} rows for {rows * shards}.")
        return tensor[place * rows : (place + 1) * rows]

    return apply_to_collection(whole, Tensor, cut)


def _is_plain_lora(module: nn.Module) -> bool:
    return (
        isinstance(module, LoraLayer)
        and list(module.active_adapters) == [ADAPTER_NAME]
        and ADAPTER_NAME in module.lora_A
        and isinstance(module.lora_A[ADAPTER_NAME], nn.Linear)
        and module.lora_B[ADAPTER_NAME].bias is None
        and not getattr(module, "lora_variant", {})
        and not getattr(module, "use_dora", {}).get(ADAPTER_NAME, False)
        and not module.merged
    )


def _fits(x: Any, layer: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == layer.lora_A[ADAPTER_NAME].weight.dtype
