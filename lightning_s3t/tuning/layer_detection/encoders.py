"""Encoders with a small decoder: segmentation networks, whose decoder is trained as the head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.modules import count_layers, expand, is_list, parts
from lightning_s3t.tuning.layer_detection.paths import common_parent, lies_in
from lightning_s3t.tuning.layer_detection.stacks import Stack
from lightning_s3t.tuning.layer_detection.widths import follows


def find_encoder(root: nn.Module, stacks: Sequence[Stack]) -> DetectedLayers | None:
    """Find the network whose first part holds the blocks, and whose others make the prediction from what it gives.

    They are fewer parameters than the first has, and each takes at least the channels that the one before gives (more
    where it is also given what earlier layers gave). All of them are the head: of a pretrained encoder they are what is
    new. A module that configures optimizers may hold several networks beside each other, so it is not looked at.

    Args:
        root: The module that paths start at.
        stacks: The lists of blocks in it, more than one.

    Returns:
        What was found; None if there is no such network.
    """
    path = common_parent([holder for stack in stacks for holder in stack.paths])
    module = root.get_submodule(path)
    if is_list(module) or hasattr(module, "configure_optimizers"):
        return None
    first, *others = [child for child in parts(module, path) if count_layers(root.get_submodule(child))]
    inside = [stack for stack in stacks if all(lies_in(holder, first) for holder in stack.paths)]
    modules = [root.get_submodule(child) for child in (first, *others)]
    if len(inside) != 1 or len(others) < 2 or 2 * _size(modules[0]) <= sum(map(_size, modules)):
        return None
    if not all(follows(before, after, at_least=True) for before, after in pairwise(modules)):
        return None
    head = expand(root, others)
    return DetectedLayers(None, inside[0].blocks, head, f"an encoder, {inside[0]}, and what is registered after it")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
