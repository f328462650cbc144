"""Stacks: lists of blocks, wherever a module holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from lightning_s3t.tuning.layer_detection.blocks import Block, Blocks, blocks_in, main_class, tidy
from lightning_s3t.tuning.layer_detection.modules import has_parts, is_callable, is_list, parts
from lightning_s3t.tuning.layer_detection.names import names_head, names_stem, numbered
from lightning_s3t.tuning.layer_detection.paths import common_parent, join, lies_in_any

_ENDINGS = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Stack:
    """A list of blocks.

    Attributes:
        paths: The modules that hold the blocks; several for sibling stages (layer1, layer2, ...).
        blocks: In forward order.
        head: The last layer of a Sequential, if it is one that makes a prediction.
    """

    paths: tuple[str, ...]
    blocks: Blocks
    head: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(path or "the module itself" for path in self.paths)


def find_stacks(root: nn.Module, inside: str, ignored: Sequence[str], wanted: int) -> list[Stack]:
    """Find the stacks of at least two blocks, from the outside in.

    Lists within a block belong to the block. A list that is too short is split further if its elements are lists
    themselves.

    Args:
        root: The module that paths start at.
        inside: The path to search in; "" for everywhere.
        ignored: Paths that are not part of the network.
        wanted: The number of blocks needed.
    """
    return list(_visit(root, inside, tuple(ignored), max(wanted, 2)))


def stack_in(root: nn.Module, path: str, finer: bool = False) -> Stack:
    """Read the blocks, and the head of a Sequential that ends in one.

    Args:
        root: The module that paths start at.
        path: The path of a list.
        finer: Cut elements that are lists themselves.
    """
    module = root.get_submodule(path)
    children = parts(module, path)
    head = last_as_head(module, children)
    children = children[: len(children) - len(head)]
    while children and _is_stem(root, children[0]):
        children = children[1:]
    return Stack((path,), tidy(root, blocks_in(root, children, finer)), head)


def last_as_head(module: nn.Module, children: Sequence[str]) -> Block:
    """Return the last layer of a Sequential, if it is one that makes a prediction: linear, or named like a head.

    Args:
        module: Any module.
        children: The paths of its children with parameters.

    Example:
        >>> last_as_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["net.0", "net.2"])
        ('net.2',)
        >>> last_as_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["net.0"])
        ()
    """
    if not isinstance(module, nn.Sequential) or not children:
        return ()
    name = children[-1].rpartition(".")[2]
    last = module.get_submodule(name)
    named = names_head(name) or names_head(type(last).__name__)
    after = list(module)[[child is last for child in module].index(True) + 1 :]
    ends = isinstance(last, nn.Linear) and all(isinstance(child, _ENDINGS) for child in after)
    return (children[-1],) if named or ends else ()


def longest(stacks: Sequence[Stack], size: Callable[[Stack], float], share: float) -> list[Stack]:
    """Return the largest stack, and with it those that come close: more than one if it is unclear which is meant.

    Args:
        stacks: At least one.
        size: The size to compare.
        share: The part of the largest that counts as close, 0 to 1.
    """
    best = max(stacks, key=size)
    return [stack for stack in stacks if stack is best or size(stack) >= share * size(best)]


def without_ends(stacks: Sequence[Stack]) -> list[Stack]:
    """Leave out stacks that are named like a stem or a head, if there are others.

    Args:
        stacks: Any.
    """

    def is_end(stack: Stack) -> bool:
        return any(names_head(part) or names_stem(part) for path in stack.paths for part in path.split("."))

    return [stack for stack in stacks if not is_end(stack)] or list(stacks)


def _visit(root: nn.Module, path: str, ignored: tuple[str, ...], wanted: int) -> Iterator[Stack]:
    if path and lies_in_any(path, ignored):
        return
    own = None
    module = root.get_submodule(path)
    if isinstance(module, nn.Transformer):
        both = _encoder_and_decoder(root, path, module)
        if both is not None:
            yield both
            return
    if is_list(module):
        own = stack_in(root, path)
        if len(own.blocks) < wanted:
            finer = stack_in(root, path, finer=True)
            own = finer if len(finer.blocks) >= wanted else own
        alike = len(own.blocks) > 1 and len({main_class(root, block) for block in own.blocks}) == 1
        if len(own.blocks) >= wanted or alike:
            yield own
            return
    runs = list(_numbered_runs(root, path, ignored))
    covered = {path for run in runs for path in run.paths}
    inner = [
        stack for child in parts(module, path) if child not in covered for stack in _visit(root, child, ignored, wanted)
    ]
    found = sorted([*runs, *inner], key=lambda stack: _position(root, stack.blocks[0]))
    if own is not None and len(own.blocks) > 1 and not any(len(stack.blocks) >= wanted for stack in found):
        yield own
        return
    yield from found


def _encoder_and_decoder(root: nn.Module, path: str, module: nn.Transformer) -> Stack | None:
    """Read torch's own encoder-decoder: the decoder's layers run after the encoder's."""
    if not (isinstance(module.encoder, nn.TransformerEncoder) and isinstance(module.decoder, nn.TransformerDecoder)):
        return None
    lists = [stack_in(root, join(path, f"{part}.layers")) for part in ("encoder", "decoder")]
    return Stack(tuple(found.paths[0] for found in lists), tuple(block for found in lists for block in found.blocks))


def _numbered_runs(root: nn.Module, path: str, ignored: tuple[str, ...]) -> Iterator[Stack]:
    """Yield sibling stages with one name and numbers: layer1, layer2, layer3."""
    children = [child for child in parts(root.get_submodule(path), path) if not lies_in_any(child, ignored)]
    named = [(child, numbered(child.rpartition(".")[2])) for child in children]
    for prefix, run in groupby([pair for pair in named if pair[1]], key=lambda pair: pair[1]):
        paths = tuple(child for child, _ in run)
        blocks = tidy(root, blocks_in(root, paths, finer=False))
        classes = {main_class(root, block) for block in blocks}
        deep = all(has_parts(root.get_submodule(child)) for child in paths)
        if prefix and len(paths) > 1 and len(blocks) > 1 and len(classes) == 1 and deep:
            yield Stack(paths, blocks)


def _is_stem(root: nn.Module, path: str) -> bool:
    module = root.get_submodule(path)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return True
    return names_stem(path.rpartition(".")[2]) or names_stem(type(module).__name__)


def _position(root: nn.Module, block: Block) -> int:
    return [name for name, _ in root.named_modules(remove_duplicate=False)].index(block[0])


def holder(root: nn.Module, paths: Sequence[str]) -> str:
    """Return the path of the smallest module with a forward() of its own that holds all of several.

    Args:
        root: The module that paths start at.
        paths: At least one path.

    Example:
        >>> holder(nn.ModuleDict({"nets": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])}), ["nets.0", "nets.1"])
        ''
    """
    path = common_parent(paths)
    while path and not is_callable(root.get_submodule(path)):
        path = path.rpartition(".")[0]
    return path
