"""Blocks and heads that the user names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection.blocks import Block, join_small
from lightning_s3t.tuning.layer_detection.modules import is_list, parts
from lightning_s3t.tuning.layer_detection.paths import has_parameters, lies_in
from lightning_s3t.tuning.layer_detection.stacks import last_as_head

HOW_TO_NAME = (
    "Name them: layers='model.encoder.layer' (the path of a ModuleList), or a list of paths in forward order, and "
    "head='model.classifier'."
)


def parse_layers(
    root: nn.Module, layers: str | Sequence[str] | Sequence[Sequence[str]], slices: int, heads: Sequence[str]
) -> tuple[list[Block], bool, Block]:
    """Parse the user's description of the blocks.

    Args:
        root: The module that the paths start at.
        layers: The path of a list, or paths of blocks, or lists of paths of blocks.
        slices: Number of groups.
        heads: The head, where the user names it: it is not a block.

    Returns:
        The blocks in forward order; whether they are the groups; the last layer of a Sequential, if it may be the head.

    Raises:
        LayersError: A path is not that of a module, or the argument has none of the three forms.
    """
    if isinstance(layers, str):
        check_paths(root, [layers])
        return _read_list(root, layers, heads)
    if not layers:
        raise LayersError(f"`layers` names 0 blocks. Expected at least one per slice. {HOW_TO_NAME}")
    names = [entry for entry in layers if isinstance(entry, str)]
    if len(names) == len(layers):
        check_paths(root, names)
        bare = [name for name in names if not has_parameters(root.get_submodule(name))]
        if bare:
            raise LayersError(f"The blocks {', '.join(bare)} have no parameters. Leave them out of `layers`.")
        return [(name,) for name in names], False, ()
    if names:
        raise LayersError(f"`layers` mixes paths ({names[0]!r}) and lists of paths. Expected only one kind.")
    groups = [tuple(group) for group in layers]
    if len(groups) != slices:
        raise LayersError(f"`layers` names {len(groups)} groups for {slices} slices. Expected one per slice.")
    for number, group in enumerate(groups):
        check_paths(root, group)
        if not any(has_parameters(root.get_submodule(name)) for name in group):
            raise LayersError(f"layers[{number}] ({list(group)}) has no parameters. Expected blocks in each group.")
    return groups, True, ()


def check_paths(root: nn.Module, paths: Sequence[str]) -> None:
    """Raise if a path is not one of a module.

    Args:
        root: The module that the paths start at.
        paths: Paths that the user gave.

    Raises:
        LayersError: A path is not that of a module; the message lists similar ones.
    """
    known = [name for name, _ in root.named_modules(remove_duplicate=False) if name]
    for path in paths:
        if path in known or (path == "" and is_list(root)):
            continue
        close = difflib.get_close_matches(str(path), known, n=3, cutoff=0.5)
        lists = [name for name, module in root.named_modules() if name and is_list(module)]
        raise LayersError(
            f"{type(root).__name__} has no module {path!r}."
            + (f" Did you mean {', '.join(map(repr, close))}?" if close else "")
            + f" Its lists of layers are: {', '.join(lists[:10]) or 'none'}. {HOW_TO_NAME}"
        )


def _read_list(root: nn.Module, path: str, heads: Sequence[str]) -> tuple[list[Block], bool, Block]:
    module = root.get_submodule(path)
    children = parts(module, path)
    if not children or not (is_list(module) or isinstance(module, nn.ModuleDict)):
        raise LayersError(
            f"{path!r} is a {type(module).__name__} without blocks in it. Expected the path of a ModuleList "
            f"or a Sequential, or a list of paths. {HOW_TO_NAME}"
        )
    own = () if heads else last_as_head(module, children)
    blocks = [(child,) for child in children if not _overlap(child, (*own, *heads))]
    return join_small(root, blocks), False, own


def _overlap(path: str, heads: Sequence[str]) -> bool:
    return any(lies_in(head, path) or lies_in(path, head) for head in heads)
