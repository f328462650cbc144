"""The search: which finder answers for a module."""

from __future__ import annotations

from collections.abc import Sequence

import torchmetrics
from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.finders.found import Found
from lightning_s3t.tuning.finders.paths import has_parameters, lies_in
from lightning_s3t.tuning.finders.plain_modules import find_head_after, find_in_plain_module
from lightning_s3t.tuning.finders.timm_models import find_in_timm_model, is_timm_model
from lightning_s3t.tuning.finders.torchvision_models import find_in_torchvision_model, is_torchvision_model
from lightning_s3t.tuning.finders.transformers_models import find_in_transformers_model, is_transformers_model


def find_blocks(root: nn.Module, slices: int) -> Found:
    """Finds the blocks of a module, and its head where the model names it.

    Args:
        root: A LightningModule, or a network.
        slices: How many blocks are wanted at least.

    Raises:
        LayersError: There are none, or more than one network has some.
    """
    ignored = _ignored(root)
    models: dict[str, Found] = {}
    for path, module in root.named_modules():
        if any(lies_in(path, skipped) for skipped in ignored) or any(lies_in(path, outer) for outer in models):
            continue
        found = _ask(module, path)
        if found is not None:
            models[path] = found
    if len(models) > 1:
        raise LayersError(
            f"{type(root).__name__} holds {len(models)} networks: {', '.join(models)}. Expected one. Name the layers "
            f"of the one to train: layers=[...] or the path of its list of blocks, and head=..."
        )
    if models:
        return next(iter(models.values()))
    plain = find_in_plain_module(root, ignored, slices)
    if plain is None:
        children = [f"{name} ({type(child).__name__})" for name, child in root.named_children()]
        raise LayersError(
            f"No list of layers was found in {type(root).__name__}. Seen: {', '.join(children) or 'no submodules'}. "
            "Expected a timm, transformers or torchvision model, or a ModuleList or Sequential of at least two layers. "
            "Name the blocks in forward order: layers=['conv1', 'conv2'], head='fc'."
        )
    return plain


def find_head(root: nn.Module, blocks: Sequence[str], network: str | None) -> tuple[str, ...]:
    """Finds the head of a network that does not name it.

    Args:
        root: A LightningModule, or a network.
        blocks: The blocks' paths.
        network: The path of the model that was recognised, None if none was.

    Raises:
        LayersError: There is none.
    """
    return find_head_after(root, blocks, network, _ignored(root))


def _ask(module: nn.Module, path: str) -> Found | None:
    if is_timm_model(module):
        return find_in_timm_model(module, path)
    if is_transformers_model(module):
        return find_in_transformers_model(module, path)
    if is_torchvision_model(module):
        return find_in_torchvision_model(module, path)
    return None


def _ignored(root: nn.Module) -> list[str]:
    """Metrics and losses stand beside the network; so does everything without parameters."""
    return [
        path
        for path, module in root.named_modules()
        if path
        and (isinstance(module, (torchmetrics.Metric, torchmetrics.MetricCollection)) or not has_parameters(module))
    ]
