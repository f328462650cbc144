"""Serving: the ensemble against separate passes, and a swap after a request against loading a checkpoint.

`python -m tests.benchmarks.serving`. A ViT-base, five shards of six slices, LoRA of rank 16 on query, key and value. Marks, on
a CPU: the ensemble takes no longer than five passes of one model; the swap is 100 times as fast as what the authors' code
does, which loads the shard's whole model from a checkpoint; the store is 50 times smaller than a checkpoint a stage.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_s3t import S3TModule
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import describe_adapter, resolve_adapter
from lightning_s3t.tuning.fingerprint import digest_tensors
from lightning_s3t.tuning.stages import collect_tensors
from tests.benchmarks.timing import ratio, take_turns

SHARDS, SLICES, ROWS, ROUNDS = 5, 6, 4, 7
ADAPTER = {"peft_type": "LORA", "r": 16, "target_modules": ["qkv"]}
MARK_PASSES, MARK_SWITCH, MARK_SIZE = 1.0, 100.0, 50.0


class Classifier(pl.LightningModule):
    """A ViT-base."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model("vit_base_patch16_224", num_classes=100)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.network(images)
        return logits


def fill(path: Path, module: Classifier) -> list[int]:
    """Makes a store whose units are as large as trained ones; returns the bytes of each snapshot."""
    adapter = resolve_adapter(ADAPTER)
    builder = StageBuilder(module, find_layers(module, SLICES), adapter)
    heads = {name: list(tensor.shape) for name, tensor in builder.base_tensors().items()}
    settings = {
        "partition": {"shards": SHARDS, "slices": SLICES, "seed": 0},
        "layers": {
            "network": builder.layers.network,
            "groups": [list(group.modules) for group in builder.layers.groups],
            "head": list(builder.layers.head),
        },
        "adapter": describe_adapter(adapter),
        "model": {"pretrained_sha256": digest_tensors(builder.frozen_tensors()), "head_shapes": heads},
    }
    order, sizes = tuple(range(SLICES)), []
    with Store.create(path, settings) as store:
        store.save_base(builder.base_tensors())
        for shard in range(SHARDS):
            trained: list[dict[str, Tensor]] = []
            for stage in range(1, SLICES + 1):
                built = builder.build(stage, trained, seed=shard)
                tensors = collect_tensors({name: built[name] for name in builder.owned(stage)})
                unit = UnitId(shard, order[:stage])
                store.start_unit(unit, "key").commit({n: torch.randn_like(t) * 0.01 for n, t in tensors.items()}, {})
                trained.append(store.load(unit))
                sizes.append(store.snapshot_size(unit))
    return sizes


def time_inference(served: S3TModule, plain: Classifier) -> tuple[Table, float]:
    """Times the ensemble, five passes and one; returns a table, and the ratio to five passes."""
    images = torch.randn(ROWS, 3, 224, 224)
    with torch.no_grad():
        times = take_turns(
            {
                "the ensemble": lambda: served(images),
                "five passes": lambda: [plain(images) for _ in range(SHARDS)],
                "one pass": lambda: plain(images),
            },
            ROUNDS,
            "inference",
        )
    found = Table("", "seconds, median", "the ensemble takes so many times as long", title="Inference")
    for name, seconds in times.items():
        found.add_row(name, f"{statistics.median(seconds):.3f}", str(ratio(times["the ensemble"], seconds)))
    return found, ratio(times["the ensemble"], times["five passes"]).median


def time_switch(served: S3TModule, plain: nn.Module, folder: Path) -> tuple[float, float]:
    """Times the swap to the survivors after each of some requests, and loading a whole checkpoint; medians."""
    torch.save(plain.state_dict(), folder / "model.ckpt")
    swaps, loads = [], []
    people = (f"user-{number}" for number in itertools.count())
    while len(swaps) < ROUNDS:
        before = dict(served.survivors)
        served.store.forget([next(people)], strict=False)
        start = time.perf_counter()
        served.refresh()
        if served.survivors != before:
            swaps.append(time.perf_counter() - start)
            start = time.perf_counter()
            plain.load_state_dict(torch.load(folder / "model.ckpt", weights_only=True))
            loads.append(time.perf_counter() - start)
    return statistics.median(swaps), statistics.median(loads)


def main() -> int:
    """Runs all; returns 1 beyond a mark."""
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        module = Classifier().eval()
        sizes = fill(Path(name) / "store", module)
        served = S3TModule.load(Path(name) / "store", module)
        inference, passes = time_inference(served, module)
        console.print(inference)
        swap, load = time_switch(served, module, Path(name))
        whole = (Path(name) / "model.ckpt").stat().st_size
        size = whole / statistics.mean(sizes)
    console.print(f"Swap after a request: {1000 * swap:.1f} ms; loading a checkpoint: {1000 * load:.0f} ms.")
    console.print(f"Ratio: {load / swap:.0f} (mark: {MARK_SWITCH:g}).")
    console.print(f"A unit: {statistics.mean(sizes) / 1e6:.2f} MB; a checkpoint: {whole / 1e6:.0f} MB.")
    console.print(f"Ratio: {size:.0f} (mark: {MARK_SIZE:g}).")
    return int(passes > MARK_PASSES or load / swap < MARK_SWITCH or size < MARK_SIZE)


if __name__ == "__main__":
    sys.exit(main())
