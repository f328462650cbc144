"""Layer groups, adapters, freezing, snapshots and the guard: torch and PEFT, no Lightning."""

from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER
from lightning_s3t.tuning.layer_table import LayerTable, describe_layers
from lightning_s3t.tuning.layers import LayerGroup, Layers, find_layers
from lightning_s3t.tuning.stages import StageBuilder

__all__ = [
    "DEFAULT_ADAPTER",
    "LayerGroup",
    "LayerTable",
    "Layers",
    "StageBuilder",
    "describe_layers",
    "find_layers",
]
