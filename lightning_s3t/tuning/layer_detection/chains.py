"""Chains: networks whose layers or blocks are attributes, one after the other (conv1, conv2, fc1, fc2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_s3t.tuning.layer_detection.blocks import tidy
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.modules import count_layers, has_parts, is_callable, is_list, parts
from lightning_s3t.tuning.layer_detection.paths import lies_in_any
from lightning_s3t.tuning.layer_detection.widths import follows

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def find_chain(root: nn.Module, ignored: Sequence[str]) -> DetectedLayers | None:
    """Find attributes that follow each other: each takes the channels that the one before gives.

    They are all that the module has, or all of the one network in it. The last of them is the head. Embeddings at the
    start stay frozen. A module that configures optimizers may hold several networks beside each other, so its own
    attributes are a chain only if they are layers.

    Args:
        root: The module.
        ignored: Paths that are not part of the network.

    Returns:
        What was found; None if that is not what the module is like.

    Example:
        >>> net = nn.ModuleDict({"conv1": nn.Conv2d(1, 4, 3), "fc1": nn.Linear(64, 8), "fc2": nn.Linear(8, 2)})
        >>> found = find_chain(net, ())
        >>> found.blocks, found.head
        ((('conv1',), ('fc1',)), ('fc2',))
    """
    path = ""
    while len(children := _children(root, path, tuple(ignored))) == 1:
        path = children[0]
    if not _is_chain(root, path, children):
        return None
    *body, head = children
    while isinstance(root.get_submodule(body[0]), _EMBEDDINGS):
        body = body[1:]
    return DetectedLayers(
        None, tidy(root, [(path,) for path in body]), (head,), f"layers that follow each other, {body[0]} to {head}"
    )


def _children(root: nn.Module, path: str, ignored: tuple[str, ...]) -> list[str]:
    return [child for child in parts(root.get_submodule(path), path) if not lies_in_any(child, ignored)]


def _is_chain(root: nn.Module, path: str, children: Sequence[str]) -> bool:
    module = root.get_submodule(path)
    if is_list(module):
        return False
    modules = [root.get_submodule(child) for child in children]
    weighted = [found for found in modules if count_layers(found)]
    body = [found for found in weighted[:-1] if not isinstance(found, _EMBEDDINGS)]
    if not body or weighted[-1] is not modules[-1] or not all(map(is_callable, modules)):
        return False
    if any(isinstance(found, _EMBEDDINGS) for found in weighted[1:]):
        return False
    if any(map(has_parts, modules)) and (len(weighted) < 4 or hasattr(module, "configure_optimizers")):
        return False
    return all(follows(before, after) for before, after in pairwise(weighted))
