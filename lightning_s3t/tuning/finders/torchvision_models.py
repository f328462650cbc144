"""torchvision: stages of blocks by their usual names, and the classifier."""

from __future__ import annotations

from torch import nn

from lightning_s3t.tuning.finders.found import Found
from lightning_s3t.tuning.finders.paths import has_parameters, join

_HEADS = ("fc", "classifier", "heads", "head")


def is_torchvision_model(module: nn.Module) -> bool:
    """Says whether a module is one of torchvision's classification models, without importing it.

    Args:
        module: Any module.
    """
    return type(module).__module__.startswith("torchvision.models.") and any(hasattr(module, name) for name in _HEADS)


def find_in_torchvision_model(model: nn.Module, path: str) -> Found | None:
    """Finds the blocks of a torchvision model.

    Args:
        model: The model.
        path: Where it is.

    Returns:
        What was found; None if its structure is another.
    """
    blocks: list[str] = []
    if hasattr(model, "layer1"):  # resnet and its kin
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            blocks += [f"{stage}.{name}" for name, _ in getattr(model, stage).named_children()]
    elif hasattr(model, "encoder") and hasattr(model.encoder, "layers"):
        blocks = [f"encoder.layers.{name}" for name, _ in model.encoder.layers.named_children()]  # type: ignore[union-attr]
    elif isinstance(getattr(model, "features", None), nn.Sequential):
        blocks = _features(model.features)  # type: ignore[arg-type]
    if len(blocks) < 2:
        return None
    heads = [name for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)]
    heads = [join(path, name) for name in heads if has_parameters(getattr(model, name))]
    return Found(path, [(join(path, name),) for name in blocks], tuple(heads), f"torchvision {blocks[0]} ...")


def _features(features: nn.Sequential) -> list[str]:
    blocks = []
    for name, stage in list(features.named_children())[1:]:  # the first is the stem
        children = [child for child in stage.children() if has_parameters(child)]
        if type(stage) is nn.Sequential and children and all(any(True for _ in c.children()) for c in children):
            blocks += [f"features.{name}.{child}" for child, module in stage.named_children() if has_parameters(module)]
        elif has_parameters(stage):
            blocks.append(f"features.{name}")
    return blocks
