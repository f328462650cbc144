"""transformers: the longest list of equal layers in the base model, and what stands beside the base model as head."""

from __future__ import annotations

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.finders.found import Found
from lightning_s3t.tuning.finders.paths import has_parameters, join


def is_transformers_model(module: nn.Module) -> bool:
    """Says whether a module is a model of the transformers library, without importing it.

    Args:
        module: Any module.
    """
    return hasattr(module, "base_model_prefix") and any(
        kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__
    )


def find_in_transformers_model(model: nn.Module, path: str) -> Found | None:
    """Finds the blocks of an encoder or a decoder, and its task head.

    Args:
        model: The model.
        path: Where it is.

    Returns:
        What was found; None if there is no list of layers.

    Raises:
        LayersError: It has two such lists (an encoder and a decoder).
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(child) for child in module}) == 1
    }
    if not lists:
        return None
    longest = max(len(module) for module in lists.values())
    chosen = [name for name, module in lists.items() if len(module) == longest]
    if len(chosen) > 1:
        raise LayersError(
            f"{type(model).__name__} has {len(chosen)} stacks of {longest} layers: "
            f"{', '.join(join(path, name) for name in chosen)}. Expected one. Name it: "
            f"layers={join(path, chosen[-1])!r}, and head=..."
        )
    blocks = [(join(path, f"{chosen[0]}.{index}"),) for index in range(longest)]
    base = str(getattr(model, "base_model_prefix", ""))
    heads: list[str] = []
    if base and isinstance(getattr(model, base, None), nn.Module):
        heads = [name for name, child in model.named_children() if name != base and has_parameters(child)]
    return Found(path, blocks, tuple(join(path, name) for name in heads), f"transformers {chosen[0]}")
