"""Suggestions for layers and a head that were not found: names from the module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_s3t.tuning.layer_detection.arguments import as_arguments
from lightning_s3t.tuning.layer_detection.heads import heads_after, named_like_heads
from lightning_s3t.tuning.layer_detection.paths import lies_in_any
from lightning_s3t.tuning.layer_detection.stacks import Stack
from lightning_s3t.tuning.layer_detection.widths import layers_of


def propose_layers(root: nn.Module, ignored: Sequence[str]) -> str:
    """Return arguments that name all layers of a module in the order in which they are registered, the last as head.

    Args:
        root: The module.
        ignored: Paths that are not part of the network.

    Example:
        >>> propose_layers(nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(4, 1)}), ())
        "layers=['left'], head='right'"
    """
    layers = [
        path
        for path, layer in layers_of(root)
        if not lies_in_any(path, ignored) and not isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    ]
    if len(layers) < 2:
        return "layers=['...'], head='...'"
    return as_arguments(layers[:-1], layers[-1:])


def propose_stack(root: nn.Module, stack: Stack, ignored: Sequence[str]) -> str:
    """Return arguments that name a list of blocks and the modules after it.

    Args:
        root: The module that paths start at.
        stack: The list.
        ignored: Paths that are not part of the network.
    """
    blocks = [path for block in stack.blocks for path in block]
    levels = heads_after(root, blocks, ignored, (*blocks, *stack.head)[-1])
    after = next((level for level in levels if level), [])
    paths = stack.paths[0] if len(stack.paths) == 1 and stack.paths[0] else blocks
    return as_arguments(paths, stack.head or named_like_heads(root, levels) or after)
