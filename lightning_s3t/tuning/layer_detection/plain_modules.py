"""Hand-written modules: the one long list of blocks, attributes that follow each other, or an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection.chains import find_chain
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.encoders import find_encoder
from lightning_s3t.tuning.layer_detection.heads import find_head
from lightning_s3t.tuning.layer_detection.modules import is_from, is_list
from lightning_s3t.tuning.layer_detection.proposals import propose_stack
from lightning_s3t.tuning.layer_detection.stacks import Stack, find_stacks, longest, without_ends


def find_in_plain_module(
    root: nn.Module, ignored: Sequence[str], slices: int, headed: bool = False
) -> DetectedLayers | None:
    """Find the longest list of blocks in a module that is of no known library.

    Where there is none, or it is not clear which is meant, other forms are looked for: attributes that follow each
    other, as in a tutorial's CNN or a U-Net written by hand; an encoder with a small decoder.

    Args:
        root: The module.
        ignored: Paths that are not part of the network.
        slices: How many blocks are wanted.
        headed: Whether the head is known already.

    Returns:
        What was found; None if there is nothing.

    Raises:
        LayersError: More than one list could be meant, or it is unclear which module is the head.
    """
    stacks = without_ends(find_stacks(root, "", ignored, slices))
    if len(_candidates(root, stacks)) != 1:
        found = find_chain(root, ignored) or (find_encoder(root, stacks) if stacks else None)
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
    """Return whether two stacks lie in two hand-written modules beside each other, as those of a GAN do."""
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
