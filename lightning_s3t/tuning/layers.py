"""Layer groups and head: a network's blocks, divided into as many groups as there are slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_s3t.core.manifest import LayersPart
from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.layer_detection import DetectedLayers, find_head_of, find_layers_and_head, find_network
from lightning_s3t.tuning.layer_detection.ignored import find_ignored
from lightning_s3t.tuning.layer_detection.named_layers import HOW_TO_NAME, check_paths, parse_layers
from lightning_s3t.tuning.layer_detection.paths import has_parameters, lies_in, lies_in_any


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
    """The detected layers of a module.

    Attributes:
        network: The path of the module whose forward() returns the prediction; "" for the root.
        groups: From the top down.
        head: The paths of the modules that make the prediction.
        source: How it was found.
    """

    network: str
    groups: tuple[LayerGroup, ...]
    head: tuple[str, ...]
    source: str

    @classmethod
    def of(cls, part: LayersPart, source: str) -> Layers:
        """Return layers as a manifest describes them.

        Args:
            part: The description.
            source: Where it is from.
        """
        groups = tuple(LayerGroup(index, tuple(names)) for index, names in enumerate(part.groups, start=1))
        return cls(part.network, groups, tuple(part.head), source)

    def group_of(self) -> dict[str, int]:
        """Return the index of each module's group, by path; 0 for the head."""
        return {path: group.index for group in self.groups for path in group.modules} | dict.fromkeys(self.head, 0)


def find_layers(
    root: nn.Module,
    slices: int,
    layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    head: str | Sequence[str] | None = None,
) -> Layers:
    """Find the layer groups and the head of a module.

    timm models describe their own blocks (`group_matcher`) and head (`get_classifier`); transformers and torchvision
    models are known by their structure; of any other module the longest ModuleList or Sequential is taken. Stem,
    embeddings and a last normalisation before the head belong to no group: they stay frozen. Metrics and losses, with
    the networks in them, are not looked into.

    If the blocks don't divide evenly, the lower groups are larger by one block. Modules that belong to a block but are
    registered next to it (its normalisation, the downsampling before it, a last convolution) are in its group too.

    Args:
        root: A LightningModule, or a network.
        slices: Number of groups, L.
        layers: The path of a ModuleList or Sequential, a list of block paths in forward order, or a list of L such
            lists, from the bottom up. Of a Sequential that is named and ends in a linear layer, that layer is the head.
        head: The path of the head, or several.

    Raises:
        LayersError: No layers were found, several are possible, a named module does not exist, or there are fewer
            blocks than slices.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = find_layers(net, slices=2)
        >>> found.head, [group.modules for group in found.groups]
        (('4',), [('2',), ('0',)])
    """
    if isinstance(slices, bool) or not isinstance(slices, int) or slices < 1:
        raise LayersError(f"Expected `slices` to be a positive integer, but got {slices!r}.")
    check_initialised(root)
    heads = _named_heads(root, head)
    grouped = False
    if layers is None:
        found = find_layers_and_head(root, slices, headed=bool(heads))
    else:
        blocks, grouped, own = parse_layers(root, layers, slices, heads)
        paths = [path for block in blocks for path in block]
        _check_blocks(root, blocks)
        found = DetectedLayers(None, blocks, () if heads else find_head_of(root, paths, own), "named by the user")
    heads = heads or found.head
    _check_blocks(root, found.blocks)
    groups = tuple(
        LayerGroup(index, tuple(path for block in blocks for path in block))
        for index, blocks in enumerate(_cut(found.blocks, slices, grouped), start=1)
    )
    _check_apart(root, groups, heads)
    network = find_network(root, [*(path for group in groups for path in group.modules), *heads])
    return Layers(network, groups, heads, found.source)


def find_left_out(root: nn.Module, layers: Layers) -> tuple[str, ...]:
    """Return the trainable parameters outside a network that no stage trains: those of a loss, and the module's own.

    Even if a script trains them (the centres of a metric-learning loss, a temperature), they stay unchanged.

    Args:
        root: The module.
        layers: Its detected layers.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> module = nn.ModuleDict({"net": net, "loss": nn.Bilinear(2, 2, 1)})
        >>> find_left_out(module, find_layers(module, slices=2))
        ('loss.weight', 'loss.bias')
    """
    ignored = find_ignored(root)
    trained = [*layers.head, *(path for group in layers.groups for path in group.modules)]
    return tuple(
        name
        for name, parameter in root.named_parameters()
        if parameter.requires_grad
        and (("." not in name and layers.network) or lies_in_any(name, ignored))
        and not any(lies_in(name, path) for path in trained)
    )


def check_initialised(root: nn.Module) -> None:
    """Raise if a module has lazy layers that have seen no batch.

    Args:
        root: The module.

    Raises:
        LayersError: Naming them.
    """
    lazy = [name for name, parameter in root.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise LayersError(
            f"{', '.join(lazy[:3])} have no shape yet: the module has lazy layers (LazyLinear, ...), which take theirs "
            "from the first batch. Call the network with one batch before trainer.fit and before serving."
        )


def _named_heads(root: nn.Module, head: str | Sequence[str] | None) -> tuple[str, ...]:
    if head is None:
        return ()
    heads = (head,) if isinstance(head, str) else tuple(dict.fromkeys(head))
    if not heads or "" in heads:
        raise LayersError(f"Expected `head` to be the path of a module, or several, but got {head!r}. {HOW_TO_NAME}")
    check_paths(root, heads)
    for path in heads:
        inside = [other for other in heads if other != path and lies_in(other, path)]
        if inside:
            raise LayersError(f"The head {inside[0]} lies in the head {path}. Expected separate heads.")
    return heads


def _cut(blocks: Sequence[tuple[str, ...]], slices: int, grouped: bool) -> list[Sequence[tuple[str, ...]]]:
    """Return the blocks of each group, from the top group down."""
    if len(blocks) < slices:
        names = ", ".join(block[0] for block in blocks)
        raise LayersError(
            f"The network has {len(blocks)} blocks ({names}) for {slices} slices. Expected at least one block per "
            f"slice: use slices={len(blocks)} or fewer; or groups={len(blocks)}, so that slices share groups; or name "
            f"finer layers. {HOW_TO_NAME}"
        )
    if grouped:
        return [[block] for block in reversed(blocks)]
    small, larger = divmod(len(blocks), slices)
    groups, end = [], len(blocks)
    for index in range(1, slices + 1):
        size = small + (index > slices - larger)
        groups.append(blocks[end - size : end])
        end -= size
    return groups


def _check_blocks(root: nn.Module, blocks: Sequence[tuple[str, ...]]) -> None:
    if not blocks:
        raise LayersError(f"No blocks are left outside the head. Expected at least one per slice. {HOW_TO_NAME}")
    paths = [path for block in blocks for path in block]
    for path in paths:
        for other in paths:
            if path != other and lies_in(path, other):
                raise LayersError(f"The block {path} lies in the block {other}. Expected separate blocks.")
    if len({id(root.get_submodule(path)) for path in paths}) < len(paths):
        raise LayersError(f"A block is named twice in {paths}. Expected each block once.")


def _check_apart(root: nn.Module, groups: Sequence[LayerGroup], heads: Sequence[str]) -> None:
    """Raise an error if a parameter is in several groups, or in a group and the head."""
    for path in (path for group in reversed(groups) for path in group.modules):
        for head in heads:
            if lies_in(path, head) or lies_in(head, path):
                raise LayersError(f"The block {path} and the head {head} overlap. Name them apart. {HOW_TO_NAME}")
    if not any(has_parameters(root.get_submodule(head)) for head in heads):
        raise LayersError(f"The head ({', '.join(heads)}) has no parameters. {HOW_TO_NAME}")
    owners: dict[int, tuple[str, str]] = {}
    named = [(f"layer group {group.index}", group.modules) for group in groups] + [("the head", tuple(heads))]
    for owner, paths in named:
        for path in paths:
            for name, parameter in root.get_submodule(path).named_parameters():
                other, first = owners.setdefault(id(parameter), (owner, f"{path}.{name}"))
                if other != owner:
                    raise LayersError(
                        f"{path}.{name} in {owner} is the same parameter as {first} in {other}. Expected every "
                        "parameter in one of them: a stage would train the other's too. Put the modules that share it "
                        f"into one group: layers=[[...], ...]. {HOW_TO_NAME}"
                    )
