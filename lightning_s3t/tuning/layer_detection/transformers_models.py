"""transformers: the large stack of layers, and the modules next to the base model as the head."""

from __future__ import annotations

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection.arguments import as_arguments
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.heads import heads_after, named_like_heads
from lightning_s3t.tuning.layer_detection.ignored import find_ignored
from lightning_s3t.tuning.layer_detection.modules import count_layers, expand, parts
from lightning_s3t.tuning.layer_detection.paths import join, lies_in_any
from lightning_s3t.tuning.layer_detection.stacks import Stack, find_stacks, longest, without_ends


def is_transformers_model(module: nn.Module) -> bool:
    """Return whether a module is a model of the transformers library, without importing it.

    Args:
        module: Any module.
    """
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def find_in_transformers_model(model: nn.Module, path: str, slices: int) -> DetectedLayers | None:
    """Find the blocks of an encoder or a decoder, and its task head.

    Args:
        model: The model.
        path: Its path.
        slices: The wanted number of blocks.

    Returns:
        The detected layers; None if there is no list of layers.

    Raises:
        LayersError: It has two such lists (an encoder and a decoder, a text and an image tower).
    """
    stacks = without_ends(find_stacks(model, "", find_ignored(model), slices))
    if not stacks:
        return None
    # by parameters, not by number: a tower of convolutions before a speech encoder may have more layers
    chosen = longest(stacks, lambda stack: _size(model, stack), share=0.25)
    if len(chosen) > 1:
        listed = ", ".join(f"{join(path, str(stack))} ({len(stack.blocks)})" for stack in chosen)
        heads = transformers_heads(model, chosen[-1].blocks[-1][-1])
        proposal = as_arguments(join(path, chosen[-1].paths[0]), [join(path, name) for name in heads])
        raise LayersError(
            f"{type(model).__name__} has {len(chosen)} stacks of layers: {listed}. Expected one. Name it: {proposal}."
        )
    last = chosen[0].blocks[-1][-1]
    blocks = [tuple(join(path, name) for name in block) for block in chosen[0].blocks]
    heads = transformers_heads(model, last)
    return DetectedLayers(path, blocks, tuple(join(path, name) for name in heads), f"transformers {chosen[0]}")


def transformers_heads(model: nn.Module, last: str) -> tuple[str, ...]:
    """Find the task head of a model: the modules next to its base model.

    Args:
        model: The model.
        last: The path of its last block.

    Returns:
        Their paths; none for a base model.
    """
    base = str(getattr(model, "base_model_prefix", ""))
    ignored = find_ignored(model)
    if isinstance(getattr(model, base, None) if base else None, nn.Module):
        beside = [name for name in parts(model, "") if name != base and not lies_in_any(name, ignored)]
        return expand(model, [name for name in beside if count_layers(model.get_submodule(name))] or beside)
    if "For" not in type(model).__name__:
        return ()
    return named_like_heads(model, heads_after(model, [], ignored, last))


def _size(model: nn.Module, stack: Stack) -> int:
    paths = [path for block in stack.blocks for path in block]
    return sum(parameter.numel() for path in paths for parameter in model.get_submodule(path).parameters())
