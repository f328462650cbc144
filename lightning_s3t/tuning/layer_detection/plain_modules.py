"""Hand-written modules: the one long list of blocks, attributes that follow each other, or an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection.blocks import tidy
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.heads import find_head
from lightning_s3t.tuning.layer_detection.modules import (
    count_layers,
    expand,
    has_parts,
    is_callable,
    is_from,
    is_list,
    parts,
)
from lightning_s3t.tuning.layer_detection.paths import common_parent, lies_in, lies_in_any
from lightning_s3t.tuning.layer_detection.proposals import propose_stack
from lightning_s3t.tuning.layer_detection.stacks import Stack, find_stacks, longest, without_ends
from lightning_s3t.tuning.layer_detection.widths import follows

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def find_in_plain_module(
    root: nn.Module, ignored: Sequence[str], slices: int, headed: bool = False
) -> DetectedLayers | None:
    """Find the longest list of blocks in a module that is of no known library.

    If there is none, or several are possible, other forms are tried: consecutive attributes, as in a tutorial's CNN or
    a hand-written U-Net; an encoder with a small decoder.

    Args:
        root: The module.
        ignored: Paths that are not part of the network.
        slices: The wanted number of blocks.
        headed: Whether the head is known already.

    Returns:
        The detected layers; None if there are none.

    Raises:
        LayersError: More than one list could be meant, or it is unclear which module is the head.
    """
    stacks = without_ends(find_stacks(root, "", ignored, slices))
    if len(_candidates(root, stacks)) != 1:
        found = _find_chain(root, ignored) or (_find_encoder(root, stacks) if stacks else None)
        if found is not None or not stacks:
            return found
    stack = _choose(root, stacks, ignored)
    blocks = [path for block in stack.blocks for path in block]
    head = () if headed else find_head(root, blocks, ignored, (*blocks, *stack.head)[-1], stack.head)
    return DetectedLayers(None, stack.blocks, head, f"the longest list of layers, {stack}")


def _candidates(root: nn.Module, stacks: Sequence[Stack]) -> list[Stack]:
    """Return the longest stack, and with it all that could be meant as well."""
    close = longest(stacks, lambda stack: len(stack.blocks), share=0.5) if stacks else []
    return close + [stack for stack in stacks if stack not in close and _is_another_network(root, stack, close[0])]


def _choose(root: nn.Module, stacks: Sequence[Stack], ignored: Sequence[str]) -> Stack:
    close = _candidates(root, stacks)
    if len(close) > 1:
        sizes = {len(stack.blocks) for stack in close}
        equal = f" of {sizes.pop()} layers" if len(sizes) == 1 else " of layers"
        listed = ", ".join(str(stack) if not sizes else f"{stack} ({len(stack.blocks)})" for stack in close[:6])
        more = f" and {len(close) - 6} more" if len(close) > 6 else ""
        proposals = " or ".join(propose_stack(root, stack, ignored) for stack in close[:3])
        raise LayersError(
            f"{type(root).__name__} has {len(close)} lists{equal}: {listed}{more}. Expected one that is by far the "
            f"longest. Name the one to train: {proposals}."
        )
    return close[0]


def _is_another_network(root: nn.Module, stack: Stack, other: Stack) -> bool:
    """Return whether two stacks are in two hand-written sibling modules, as in a GAN."""
    first, second = stack.paths[0].split("."), other.paths[0].split(".")
    same = sum(1 for _ in _common(first, second))
    if same >= min(len(first), len(second)):
        return False
    modules = [root.get_submodule(".".join(path[: same + 1])) for path in (first, second)]
    return all(not is_list(module) and not is_from(module, "torch.nn.modules.transformer") for module in modules)


def _common(first: Sequence[str], second: Sequence[str]) -> list[str]:
    found = []
    for one, two in zip(first, second, strict=False):
        if one != two:
            break
        found.append(one)
    return found


def _find_chain(root: nn.Module, ignored: Sequence[str]) -> DetectedLayers | None:
    """Find attributes that follow each other: each takes the channels that the one before gives.

    They are all that the module has, or all of the one network in it. The last of them is the head. Embeddings at the
    start stay frozen. A module that configures optimizers may hold several networks, so its own attributes form a chain
    only if they are layers.

    Args:
        root: The module.
        ignored: Paths that are not part of the network.

    Returns:
        The detected layers; None if the module does not have this form.

    Example:
        >>> net = nn.ModuleDict({"conv1": nn.Conv2d(1, 4, 3), "fc1": nn.Linear(64, 8), "fc2": nn.Linear(8, 2)})
        >>> found = _find_chain(net, ())
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


def _find_encoder(root: nn.Module, stacks: Sequence[Stack]) -> DetectedLayers | None:
    """Find the network whose first part holds the blocks, and whose other parts make the prediction from its output.

    They have fewer parameters than the first, and each takes at least as many channels as the previous one returns
    (more if it also gets outputs of earlier layers). Together they are the head: for a pretrained encoder they are the
    new part. A module that configures optimizers may hold several networks, so it is not considered.

    Args:
        root: The module that paths start at.
        stacks: The lists of blocks in it, more than one.

    Returns:
        The detected layers; None if there is no such network.
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
