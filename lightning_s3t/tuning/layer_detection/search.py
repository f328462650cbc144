"""The search: which finder answers for a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection.arguments import as_arguments
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.heads import find_head
from lightning_s3t.tuning.layer_detection.ignored import find_ignored
from lightning_s3t.tuning.layer_detection.modules import count_layers, is_list
from lightning_s3t.tuning.layer_detection.paths import join, lies_in, lies_in_any
from lightning_s3t.tuning.layer_detection.plain_modules import find_in_plain_module
from lightning_s3t.tuning.layer_detection.proposals import propose_layers
from lightning_s3t.tuning.layer_detection.stacks import holder
from lightning_s3t.tuning.layer_detection.timm_models import find_in_timm_model, is_timm_model, timm_heads
from lightning_s3t.tuning.layer_detection.torchvision_models import (
    find_in_torchvision_model,
    is_torchvision_model,
    torchvision_heads,
)
from lightning_s3t.tuning.layer_detection.transformers_models import (
    find_in_transformers_model,
    is_transformers_model,
    transformers_heads,
)


def find_layers_and_head(root: nn.Module, slices: int, headed: bool) -> DetectedLayers:
    """Find the blocks of a module, and its head.

    Args:
        root: A LightningModule, or a network.
        slices: The least number of blocks.
        headed: Whether the head is known already; it is not looked for then.

    Raises:
        LayersError: There are none, or more than one network has some, or it is unclear which are meant.
    """
    ignored = find_ignored(root)
    models: dict[str, DetectedLayers] = {}
    for path, module in root.named_modules():
        if lies_in_any(path, (*ignored, *models)):
            continue
        found = _ask(module, path, slices)
        if found is not None:
            models[path] = found
    if len(models) > 1:
        raise LayersError(
            f"{type(root).__name__} holds {len(models)} networks: {', '.join(models)}. Expected one. Name the layers "
            f"and the head of the one to train: {' or '.join(map(_as_arguments, models.values()))}."
        )
    if models:
        found = next(iter(models.values()))
        if headed or found.head:
            return found
        blocks = [path for block in found.blocks for path in block]
        return DetectedLayers(
            found.network, found.blocks, find_head(root, blocks, ignored, found.network or ""), found.source
        )
    plain = find_in_plain_module(root, ignored, slices, headed)
    if plain is None:
        raise LayersError(_describe_what_was_seen(root, ignored))
    return plain


def _describe_what_was_seen(root: nn.Module, ignored: Sequence[str]) -> str:
    children = [f"{name} ({type(child).__name__})" for name, child in root.named_children()]
    lists = [
        name
        for name, child in root.named_children()
        if is_list(child) and not lies_in_any(name, ignored) and count_layers(child) > 1
    ]
    found = (
        f"{type(root).__name__} has {len(lists)} lists of layers beside each other, {' and '.join(lists)}: which is "
        "the network, or whether they follow each other, is not guessed"
        if len(lists) > 1
        else f"No list of layers was found in {type(root).__name__}"
    )
    return (
        f"{found}. Seen: {', '.join(children) or 'no submodules'}. Expected a timm, transformers or torchvision model, "
        "one ModuleList or Sequential of at least two layers, or layers that follow each other. Name the blocks in "
        f"forward order, for example {propose_layers(root, ignored)}."
    )


def _as_arguments(found: DetectedLayers) -> str:
    return as_arguments([path for block in found.blocks for path in block], found.head)


def find_head_of(root: nn.Module, blocks: Sequence[str], own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Find the head that belongs to blocks which the user has named.

    Args:
        root: A LightningModule, or a network.
        blocks: The blocks' paths, in forward order.
        own: The last layer of a Sequential that was named, if it may be the head.

    Raises:
        LayersError: There is none, or it is unclear which it is.
    """
    start = blocks[-1]
    for path in _known_models(root, blocks):
        heads = _known_heads(root.get_submodule(path), blocks[-1][len(path) + 1 if path else 0 :])
        heads = tuple(join(path, head) for head in heads)
        if heads and not any(lies_in(block, head) or lies_in(head, block) for head in heads for block in blocks):
            return heads
        start = path
    if own and start == blocks[-1]:
        return own
    return find_head(root, blocks, find_ignored(root), start)


def find_network(root: nn.Module, paths: Sequence[str]) -> str:
    """Find the module whose forward() returns the prediction.

    That is the outermost model of a known library that holds the blocks and the head; if there is none, the smallest
    callable module that does.

    Args:
        root: A LightningModule, or a network.
        paths: The blocks' and the head's paths.
    """
    known = list(_known_models(root, paths))
    path = known[-1] if known else holder(root, paths)
    # torch.compile wraps a module in one that is called in its place
    return path.rpartition(".")[0] if path.rpartition(".")[2] == "_orig_mod" else path


def _known_models(root: nn.Module, paths: Sequence[str]) -> Iterator[str]:
    """Yield the models of known libraries that hold all paths, from the inside out."""
    path = paths[0]
    while path:
        path = path.rpartition(".")[0]
        module = root.get_submodule(path)
        known = is_timm_model(module) or is_transformers_model(module) or is_torchvision_model(module)
        if known and all(lies_in(other, path) for other in paths):
            yield path


def _known_heads(model: nn.Module, last: str) -> tuple[str, ...]:
    if is_timm_model(model):
        return timm_heads(model)
    return transformers_heads(model, last) if is_transformers_model(model) else torchvision_heads(model)


def _ask(module: nn.Module, path: str, slices: int) -> DetectedLayers | None:
    if type(module).__module__.startswith("torch.nn."):  # a layer, of no library of models
        return None
    if is_timm_model(module):
        return find_in_timm_model(module, path, slices)
    if is_transformers_model(module) and not any(map(is_timm_model, module.modules())):
        return find_in_transformers_model(module, path, slices)
    return find_in_torchvision_model(module, path, slices) if is_torchvision_model(module) else None
