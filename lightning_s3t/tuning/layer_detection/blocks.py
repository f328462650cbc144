"""Blocks: which modules belong together, among the elements of a list."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_s3t.tuning.layer_detection.modules import count_layers, expand, has_parts, is_list, parts

Block = tuple[str, ...]
Blocks = tuple[Block, ...]


def blocks_in(root: nn.Module, paths: Sequence[str], finer: bool) -> list[Block]:
    """Look into stages, and return the blocks they are made of.

    Modules of a stage before its blocks (a downsampling) go with the first block, modules after them with the last.

    Args:
        root: The module that paths start at.
        paths: Blocks and stages, in forward order.
        finer: Split every list, not only lists of identical blocks.
    """
    found: list[Block] = []
    for path in paths:
        stage = _blocks_of_stage(root, path, finer)
        if stage is None:
            found.append((path,))
            continue
        before, inner, after = stage
        blocks = blocks_in(root, inner, finer=False)
        blocks[0] = (*before, *blocks[0])
        blocks[-1] = (*blocks[-1], *after)
        found += blocks
    return found


def join_small(root: nn.Module, blocks: Sequence[Block]) -> list[Block]:
    """Join modules without own weights, such as a normalisation, to the layer before them.

    Args:
        root: The module that paths start at.
        blocks: In forward order.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
        >>> join_small(net, [("0",), ("1",), ("2",), ("3",)])
        [('0', '1'), ('2', '3')]
    """
    joined: list[Block] = []
    waiting: Block = ()
    for block in blocks:
        if _layers(root, block):
            joined.append((*waiting, *block))
            waiting = ()
        elif joined:
            joined[-1] = (*joined[-1], *block)
        else:
            waiting = (*waiting, *block)
    return [expand(root, block) for block in joined]


def tidy(root: nn.Module, blocks: Sequence[Block]) -> Blocks:
    """Join modules that are not blocks to their neighbour, or leave them out at the ends.

    Between blocks of several layers each, a single layer (a downsampling) goes with the block after it, and a last
    convolution with the block before. Before the first block it is a stem, which stays frozen, as does a last
    normalisation.

    Args:
        root: The module that paths start at.
        blocks: In forward order.
    """
    deep = [block for block in blocks if _layers(root, block) > 1]
    if len(deep) < 2:
        first = next((at for at, block in enumerate(blocks) if _layers(root, block)), len(blocks))
        return tuple(join_small(root, blocks[first:]))
    classes = {main_class(root, block) for block in deep}
    joined: list[Block] = []
    waiting: Block = ()
    for block in blocks:
        if main_class(root, block) in classes:
            joined.append((*waiting, *block) if joined else block)
            waiting = ()
        else:
            waiting = (*waiting, *block)
    if _layers(root, waiting):
        joined[-1] = (*joined[-1], *waiting)
    return tuple(expand(root, block) for block in joined)


def main_class(root: nn.Module, block: Block) -> type[nn.Module]:
    """Return the class of a block's largest module.

    Args:
        root: The module that paths start at.
        block: The block.
    """
    modules = [root.get_submodule(path) for path in block]
    return type(max(modules, key=lambda module: sum(parameter.numel() for parameter in module.parameters())))


def _layers(root: nn.Module, block: Block) -> int:
    return sum(count_layers(root.get_submodule(path)) for path in block)


def _blocks_of_stage(root: nn.Module, path: str, finer: bool) -> tuple[Block, list[str], Block] | None:
    """Return the modules before a stage's blocks, the blocks, and the modules after; None if it is not a stage."""
    module = root.get_submodule(path)
    inner = parts(module, path)
    if is_list(module) or isinstance(module, nn.ModuleDict):
        if _are_blocks(root, inner) or (finer and len(inner) > 1):
            return (), inner, ()
        return None
    lists = [child for child in inner if is_list(root.get_submodule(child))]
    lists = [child for child in lists if _are_blocks(root, parts(root.get_submodule(child), child))]
    if "Stage" not in type(module).__name__ or len(lists) != 1:
        return None
    at = inner.index(lists[0])
    return tuple(inner[:at]), parts(root.get_submodule(lists[0]), lists[0]), tuple(inner[at + 1 :])


def _are_blocks(root: nn.Module, paths: Sequence[str]) -> bool:
    modules = [root.get_submodule(path) for path in paths]
    return bool(modules) and len({type(module) for module in modules}) == 1 and all(map(_is_block, modules))


def _is_block(module: nn.Module) -> bool:
    return not is_list(module) and has_parts(module)
