"""Numeric checks of adapters: detects a release of PEFT that computes different outputs from the same tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.errors import StoreMismatchError
from lightning_s3t.tuning.adapters import adapter_tensors, inject_adapter
from lightning_s3t.tuning.randomness import derive_seed
from lightning_s3t.tuning.stages import StageBuilder

Effect = Mapping[str, list[float]]
_ROWS, _NUMBERS = 3, 4
_TOLERANCE = 1e-3  # releases and machines may differ only in the order of summation


@torch.no_grad()
def measure_effect(builder: StageBuilder) -> dict[str, list[float]]:
    """Return what the adapter of the first fitting layer of each group adds to the layer's output.

    The adapter's tensors and the layer's input are drawn from fixed seeds, so that the numbers show what PEFT computes
    from them: the scaling, the order of the products, and whether the adapter is active. Linear layers are measured; a
    group that has none is left out.

    Args:
        builder: The builder of the adapters.

    Returns:
        A few numbers by the path of the layer.

    Example:
        >>> from lightning_s3t.tuning import find_layers
        >>> from lightning_s3t.tuning.adapters import resolve_adapter
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> effect = measure_effect(StageBuilder(net, find_layers(net, slices=2), resolve_adapter({"r": 2})))
        >>> [len(numbers) for numbers in effect.values()]
        [4, 4]
    """
    if builder.adapter is None:
        return {}
    found: dict[str, list[float]] = {}
    for names in builder.targets.values():
        name = next((name for name in names if _width(builder.originals[name])), None)
        if name is None:
            continue
        original = copy.deepcopy(builder.originals[name]).to("cpu", torch.float32).eval()
        layer: nn.Module = inject_adapter(original, name, builder.adapter, seed=0).eval()  # type: ignore[assignment, attr-defined]
        for relative, tensor in adapter_tensors(layer).items():  # type: ignore[arg-type]
            if tensor.is_floating_point():
                tensor.copy_(_drawn(tensor.shape, name, relative) * 0.1)
        x = _drawn((_ROWS, _width(original)), name, "x")
        added = (layer(x) - original(x)).flatten().double()
        found[name] = [float(added @ _drawn(added.shape, name, str(i)).double()) for i in range(_NUMBERS)]
    return found


def check_effect(kept: Effect | None, found: Effect, store: str) -> None:
    """Raise an error if adapters compute different outputs than when the store was made.

    Args:
        kept: The result of `measure_effect` at that time; None if the store does not have it.
        found: Its current result.
        store: The store, for the message.

    Raises:
        StoreMismatchError: They differ.
    """
    for name, before in (kept or {}).items():
        now = found.get(name, [])
        scale = max(map(abs, before), default=0.0)
        if len(now) != len(before) or not all(
            math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * scale) for a, b in zip(before, now, strict=True)
        ):
            raise StoreMismatchError(
                f"The adapter of {name} computes something else than when the store at {store} was made: with the same "
                f"tensors and input it now adds {_rounded(now)}, and then {_rounded(before)}. Found another release of "
                "PEFT or torch that reads the adapter's options in another way. Install the releases that "
                "`s3t store provenance` names, or train a new store."
            )


def _width(module: Any) -> int:
    """Return how wide the input of a plain linear layer is; 0 for any other module."""
    if type(module) is nn.Linear:
        return module.in_features
    if type(module).__name__ == "Conv1D":  # transformers' linear layer, with its weight transposed
        return int(module.weight.shape[0])
    return 0


def _drawn(shape: tuple[int, ...] | torch.Size, *labels: str) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(0, "effect", *labels))
    return torch.randn(shape, generator=generator)


def _rounded(numbers: list[float]) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]
