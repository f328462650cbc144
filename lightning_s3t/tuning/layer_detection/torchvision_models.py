"""torchvision: sibling stages of blocks, or blocks in `features`, and the classifier."""

from __future__ import annotations

from torch import nn

from lightning_s3t.tuning.layer_detection.blocks import Blocks, blocks_in, tidy
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.modules import count_layers, expand, is_from, is_list, parts
from lightning_s3t.tuning.layer_detection.names import words
from lightning_s3t.tuning.layer_detection.paths import has_parameters, join
from lightning_s3t.tuning.layer_detection.stacks import find_stacks, longest, without_ends

_HEADS = ("fc", "classifier", "heads", "head")


def is_torchvision_model(module: nn.Module) -> bool:
    """Return whether a module is one of torchvision's models with a classifier, without importing it.

    Args:
        module: Any module.
    """
    if is_list(module) or not is_from(module, "torchvision.models"):
        return False
    return any(isinstance(getattr(module, name, None), nn.Module) for name in _HEADS)


def find_in_torchvision_model(model: nn.Module, path: str, slices: int) -> DetectedLayers | None:
    """Find the blocks of a torchvision model.

    Args:
        model: The model.
        path: Its path.
        slices: The wanted number of blocks.

    Returns:
        The detected layers; None if the structure is different.
    """
    heads = torchvision_heads(model)
    blocks, source = _blocks(model, heads, slices)
    if len(blocks) < 2:
        return None
    found = [tuple(join(path, name) for name in block) for block in blocks]
    return DetectedLayers(path, found, tuple(join(path, head) for head in heads), f"torchvision {source}")


def torchvision_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of a model's classifiers; none if they were replaced by nn.Identity.

    Args:
        model: The model.
    """
    heads = [name for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)]
    return expand(model, [name for name in heads if has_parameters(model.get_submodule(name))])


def _blocks(model: nn.Module, heads: tuple[str, ...], slices: int) -> tuple[Blocks, str]:
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential):
        children = parts(features, "features")
        shallow = all(count_layers(child) < 2 for child in features.children())
        # of convolutions in a row, the first is the stem
        return tidy(model, blocks_in(model, children[1:] if shallow else children, finer=False)), "features"
    auxiliary = [name for name in parts(model, "") if words(name)[0].startswith("aux")]
    stacks = without_ends(find_stacks(model, "", [*heads, *auxiliary], slices))
    chosen = longest(stacks, lambda stack: len(stack.blocks), share=0.5) if stacks else []
    if len(chosen) == 1 and len(chosen[0].blocks) >= slices:
        return chosen[0].blocks, str(chosen[0])
    rest = [name for name in parts(model, "") if name not in (*heads, *auxiliary)]
    beside = tidy(model, [(name,) for name in rest])
    if len(chosen) == 1 and len(chosen[0].blocks) >= len(beside):
        return chosen[0].blocks, str(chosen[0])
    return beside, "the model's children"
