"""Heads: the modules after the blocks that make the prediction."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection.arguments import as_arguments
from lightning_s3t.tuning.layer_detection.modules import count_layers, expand, parts
from lightning_s3t.tuning.layer_detection.names import names_head, names_stem
from lightning_s3t.tuning.layer_detection.paths import lies_in, lies_in_any


def find_head(
    root: nn.Module, blocks: Sequence[str], ignored: Sequence[str], start: str, own: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Find the head: modules that are registered after the blocks and named like a head.

    Args:
        root: The module that paths start at.
        blocks: The blocks' paths.
        ignored: Paths that are not part of the network.
        start: The module before the head: the last block, or a recognised model without a head.
        own: The last layer of the Sequential that holds the blocks, if it may be the head.

    Raises:
        LayersError: There is none, or it is unclear which it is.
    """
    after = heads_after(root, blocks, ignored, start)
    levels = _named_levels(root, after)
    if not levels and not own and not any(after):
        levels = _named_levels(root, heads_after(root, blocks, ignored, start, before=True))
    if len(levels) == 1 and not own:
        return expand(root, levels[0])
    others = [path for level in levels or after for path in level]
    linear = [path for path in others if any(isinstance(m, nn.Linear) for m in root.get_submodule(path).modules())]
    if not levels and not own and len(linear) == 1:
        others = linear
    candidates = [*own, *others]
    if len(candidates) == 1:
        return expand(root, candidates)
    if candidates:
        raise LayersError(
            f"{len(candidates)} modules of {type(root).__name__} could be the head: {', '.join(candidates)}. Expected "
            f"one after the blocks. Name it: head={candidates[0]!r}, or all that are: "
            f"head=[{', '.join(map(repr, candidates[:2]))}]."
        )
    children = [name for name in parts(root, "") if not lies_in_any(name, ignored)]
    raise LayersError(
        f"No head was found in {type(root).__name__} after {start or 'the model itself'}: its parts with parameters "
        f"are {', '.join(children) or 'none'}. Expected a module after the blocks that makes the prediction. Name it: "
        "head='...'." + _last_block_as_head(blocks)
    )


def _last_block_as_head(blocks: Sequence[str]) -> str:
    if len(blocks) < 2:
        return ""
    return f" If the last block makes it: {as_arguments(blocks[:-1], blocks[-1:])}."


def heads_after(
    root: nn.Module, blocks: Sequence[str], ignored: Sequence[str], start: str, before: bool = False
) -> list[list[str]]:
    """Return the modules that are registered after a module: its later siblings, then those of its parent, and so on.

    Normalisations and embeddings are left out.

    Args:
        root: The module that paths start at.
        blocks: Paths that are not heads.
        ignored: Paths that are not part of the network.
        start: The module.
        before: Look before it instead.
    """
    levels = []
    path = start
    while path:
        parent = path.rpartition(".")[0]
        beside = parts(root.get_submodule(parent), parent)
        at = beside.index(path) if path in beside else len(beside)
        chosen = beside[:at] if before else beside[at + 1 :]
        levels.append([name for name in chosen if _may_be_head(root, name, blocks, ignored)])
        path = parent
    return levels


def named_like_heads(root: nn.Module, levels: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the modules with a head's name, of the innermost level that has any.

    Args:
        root: The module that paths start at.
        levels: The result of `heads_after`.
    """
    named = _named_levels(root, levels)
    return expand(root, named[0]) if named else ()


def _named_levels(root: nn.Module, levels: Sequence[Sequence[str]]) -> list[list[str]]:
    named = [[path for path in level if _named(root, path)] for level in levels]
    return [level for level in named if level]


def _named(root: nn.Module, path: str) -> bool:
    return names_head(path.rpartition(".")[2]) or names_head(type(root.get_submodule(path)).__name__)


def _may_be_head(root: nn.Module, path: str, blocks: Sequence[str], ignored: Sequence[str]) -> bool:
    module = root.get_submodule(path)
    if lies_in_any(path, ignored) or not count_layers(module):
        return False
    if isinstance(module, nn.Embedding) or names_stem(path.rpartition(".")[2]):
        return False
    return not any(lies_in(block, path) or lies_in(path, block) for block in blocks)
