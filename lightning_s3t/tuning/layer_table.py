"""A table of the detected layers of a model: layer groups, head, and how much each stage trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig
from torch import nn

from lightning_s3t.columns import align
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, adapter_for, resolve_adapter
from lightning_s3t.tuning.layers import find_layers
from lightning_s3t.tuning.stages import StageBuilder


@dataclass(frozen=True)
class LayerRow:
    """A line of the table.

    Attributes:
        name: "head", "group 1" (the top one), ... or "frozen".
        modules: The paths of its blocks.
        trained: The part that training changes, for display.
        trainable: Number of parameters that a stage trains there.
        parameters: Number of pretrained parameters.
    """

    name: str
    modules: tuple[str, ...]
    trained: str
    trainable: int
    parameters: int


@dataclass(frozen=True)
class LayerTable:
    """The detected layers of a model.

    Attributes:
        rows: The head, the groups from the top down, and the rest.
        source: How it was found.
        network: The path of the module whose forward() returns the prediction.
    """

    rows: tuple[LayerRow, ...]
    source: str
    network: str

    @classmethod
    def of(cls, builder: StageBuilder) -> LayerTable:
        """Describe the groups and the head of a builder.

        Args:
            builder: Attached to the module.
        """
        root, layers, counts = builder.root, builder.layers, builder.count_trainable()
        heads = [root.get_submodule(name) for name in layers.head]
        head_size = sum(p.numel() for head in heads for p in head.parameters())
        head_trained = sum(p.numel() for head in heads for p in head.parameters() if p.requires_grad)
        rows = [LayerRow("head", layers.head, "all of it, at every stage", head_trained, head_size)]
        for group in layers.groups:
            targets = builder.targets[group.index]
            kind = "whole layers" if builder.adapter is None else _adapter_name(builder.adapter)
            size = sum(p.numel() for name in group.modules for p in root.get_submodule(name).parameters())
            rows.append(
                LayerRow(
                    f"group {group.index}",
                    group.modules,
                    f"{kind} on {len(targets)} modules",
                    counts[group.index],
                    size,
                )
            )
        rest = sum(p.numel() for p in root.parameters()) - sum(row.parameters for row in rows)
        rows.append(LayerRow("frozen", ("everything else",), "nothing", 0, max(rest, 0)))
        return cls(tuple(rows), layers.source, layers.network)

    def __str__(self) -> str:
        cells = [("", "modules", "trained", "trainable", "parameters")]
        cells += [
            (row.name, _shorten(row.modules), row.trained, f"{row.trainable:,}", f"{row.parameters:,}")
            for row in self.rows
        ]
        where = f"network: {self.network or 'the module itself'}; found by: {self.source}"
        return f"{align(cells, numbers_from=3)}\n{where}"


def describe_layers(
    module: nn.Module,
    slices: int,
    layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    head: str | Sequence[str] | None = None,
    adapter: PeftConfig | Mapping[str, Any] | None = DEFAULT_ADAPTER,
) -> LayerTable:
    """Find the layer groups and the head of a module, before any training.

    Args:
        module: A LightningModule or a network.
        slices: Number of groups.
        layers: The blocks, if they are not found automatically.
        head: The head, if it is not found automatically.
        adapter: The adapter, or None for whole layers. The default is that of `S3T`: the paper's LoRA, the module's own
            adapters, or whole layers if LoRA does not fit.

    Returns:
        A table; `print` shows it.

    Raises:
        LayersError: Groups or head were not found, or do not fit.
        AdapterError: The adapter does not fit the groups.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [row.name for row in describe_layers(net, slices=2).rows]
        ['head', 'group 1', 'group 2', 'frozen']
    """
    found = find_layers(module, slices, layers, head)
    return LayerTable.of(StageBuilder(module, found, adapter_for(module, found, resolve_adapter(adapter))))


def _adapter_name(config: PeftConfig) -> str:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    rank = getattr(config, "r", None)
    return f"{kind} (r={rank})" if rank is not None else kind


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ... {names[-1]} ({len(names)})"
