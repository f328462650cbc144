"""A store whose units are as large as trained ones, without the training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import describe_adapter, resolve_adapter
from lightning_s3t.tuning.stages import collect_tensors


def fill(
    path: Path, module: pl.LightningModule, shards: int, orders: Sequence[Sequence[int]], adapter: Mapping[str, Any]
) -> list[int]:
    """Make the store; return the bytes of each snapshot."""
    slices, config = len(orders[0]), resolve_adapter(adapter)
    builder = StageBuilder(module, find_layers(module, slices), config)
    settings = {
        "partition": {"shards": shards, "slices": slices, "seed": 0},
        "layers": {
            "network": builder.layers.network,
            "groups": [list(group.modules) for group in builder.layers.groups],
            "head": list(builder.layers.head),
        },
        "adapter": describe_adapter(config),
        "model": {
            **builder.describe_model(),
        },
    }
    owned: dict[int, dict[str, Tensor]] = {}
    for stage in range(1, slices + 1):
        built = builder.build(stage, owned, seed=0)
        owned[stage] = collect_tensors({name: built[name] for name in builder.owned(stage)})
    sizes = []
    with Store.create(path, settings) as store, store.building() as building:
        building.save_base(builder.base_tensors())
        for shard, order, stage in itertools.product(range(shards), orders, range(1, slices + 1)):
            unit = UnitId(shard, tuple(order[:stage]))
            tensors = {name: torch.randn_like(tensor) * 0.01 for name, tensor in owned[stage].items()}
            record = building.start_unit(unit, "key").commit(tensors, {})
            sizes.append((store.path / "snapshots" / f"{record.snapshot}.safetensors").stat().st_size)
    return sizes
