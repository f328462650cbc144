"""Layer groups and head: where a network's blocks are, cut into as many groups as there are slices."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.finders import Found, find_blocks, find_head
from lightning_s3t.tuning.finders.paths import common_parent, has_parameters, lies_in

HOW_TO_NAME = (
    "Name them: layers='model.encoder.layer' (the path of a ModuleList), or a list of paths in forward order, and "
    "head='model.classifier'."
)


@dataclass(frozen=True)
class LayerGroup:
    """Consecutive blocks that one stage trains.

    Attributes:
        index: 1 for the top group, nearest the head.
        modules: The blocks' paths, in forward order.
    """

    index: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """What was found in a module.

    Attributes:
        network: The path of the module whose forward() gives the prediction; "" for the root.
        groups: From the top down.
        head: The paths of the modules that make the prediction.
        source: How it was found.
    """

    network: str
    groups: tuple[LayerGroup, ...]
    head: tuple[str, ...]
    source: str


def find_layers(
    root: nn.Module,
    slices: int,
    layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    head: str | Sequence[str] | None = None,
) -> Layers:
    """Finds the layer groups and the head of a module.

    timm models describe their own blocks (`group_matcher`) and head (`get_classifier`); transformers and torchvision
    models are known by their structure; of any other module the longest ModuleList or Sequential is taken. Where
    the blocks don't divide evenly, the lower groups are the larger ones.

    Args:
        root: A LightningModule, or a network.
        slices: Number of groups, L.
        layers: The path of a ModuleList or Sequential, a list of block paths in forward order, or a list of L such
            lists, from the bottom up.
        head: The path of the head, or several.

    Raises:
        LayersError: Nothing was found, more than one thing was found, or there are fewer blocks than slices.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = find_layers(net, slices=2)
        >>> found.head, [group.modules for group in found.groups]
        (('4',), [('2',), ('0',)])
    """
    named_groups = _nested(layers)
    if named_groups is not None:
        if len(named_groups) != slices:
            raise LayersError(f"`layers` names {len(named_groups)} groups for {slices} slices. Expected one a slice.")
        blocks = [(path,) for group in named_groups for path in group]
        found = Found(None, blocks, (), "named by the user")
    elif layers is not None:
        found = _named_blocks(root, layers)
    else:
        found = find_blocks(root, slices)
    paths = [path for block in found.blocks for path in block]
    _check_paths(root, paths)
    heads = tuple([head] if isinstance(head, str) else head or found.head or find_head(root, paths, found.network))
    _check_paths(root, heads)
    _check_apart(root, paths, heads)
    network = found.network if found.network is not None and _holds(found.network, [*paths, *heads]) else None
    groups = (
        _group(found.blocks, slices)
        if named_groups is None
        else tuple(LayerGroup(i, tuple(group)) for i, group in enumerate(reversed(named_groups), start=1))
    )
    return Layers(common_parent([*paths, *heads]) if network is None else network, groups, heads, found.source)


def _group(blocks: Sequence[tuple[str, ...]], slices: int) -> tuple[LayerGroup, ...]:
    if len(blocks) < slices:
        names = ", ".join(block[0] for block in blocks)
        raise LayersError(
            f"The network has {len(blocks)} blocks ({names}) for {slices} slices. Expected at least one block a slice: "
            f"use slices={len(blocks)} or fewer, or name finer layers. {HOW_TO_NAME}"
        )
    small, larger = divmod(len(blocks), slices)
    groups, end = [], len(blocks)
    for index in range(1, slices + 1):
        size = small + (index > slices - larger)
        chosen = blocks[end - size : end]
        groups.append(LayerGroup(index, tuple(path for block in chosen for path in block)))
        end -= size
    return tuple(groups)


def _named_blocks(root: nn.Module, layers: str | Sequence[object]) -> Found:
    if isinstance(layers, str):
        _check_paths(root, [layers])
        container = root.get_submodule(layers)
        children = [f"{layers}.{name}" for name, child in container.named_children() if has_parameters(child)]
        if not children:
            raise LayersError(
                f"{layers!r} is a {type(container).__name__} without blocks in it. Expected the path of a ModuleList "
                f"or a Sequential, or a list of paths. {HOW_TO_NAME}"
            )
        return Found(None, [(path,) for path in children], (), "named by the user")
    return Found(None, [(str(path),) for path in layers], (), "named by the user")


def _nested(layers: object) -> list[list[str]] | None:
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        return None
    if layers and all(not isinstance(group, str) for group in layers):
        return [list(group) for group in layers]
    return None


def _check_paths(root: nn.Module, paths: Sequence[str]) -> None:
    known = [name for name, _ in root.named_modules(remove_duplicate=False) if name]
    for path in paths:
        if path not in known:
            close = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
            containers = [n for n, m in root.named_modules() if n and isinstance(m, (nn.ModuleList, nn.Sequential))]
            raise LayersError(
                f"{type(root).__name__} has no module {path!r}."
                + (f" Did you mean {', '.join(map(repr, close))}?" if close else "")
                + f" Its lists of layers are: {', '.join(containers[:10]) or 'none'}. {HOW_TO_NAME}"
            )


def _check_apart(root: nn.Module, paths: Sequence[str], heads: Sequence[str]) -> None:
    for path in paths:
        for other in paths:
            if path != other and lies_in(path, other):
                raise LayersError(f"The block {path} lies in the block {other}. Expected blocks beside each other.")
        for head in heads:
            if lies_in(path, head) or lies_in(head, path):
                raise LayersError(f"The block {path} and the head {head} overlap. Name them apart. {HOW_TO_NAME}")
    if len(set(paths)) < len(paths):
        raise LayersError(f"A block is named twice in {list(paths)}. Expected each block once.")
    if not any(has_parameters(root.get_submodule(head)) for head in heads):
        raise LayersError(f"The head ({', '.join(heads)}) has no parameters. {HOW_TO_NAME}")


def _holds(network: str, paths: Sequence[str]) -> bool:
    return all(lies_in(path, network) for path in paths)
