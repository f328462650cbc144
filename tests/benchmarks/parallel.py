"""Eight units at the same time against one after another: `python -m tests.benchmarks.parallel`.

The whole fit counts, from `fit` to the last committed unit. Both train each unit in a process of its own, forked from one
that holds the network. On a GPU: vit_tiny_patch16_224 with batches of 32, all eight at once; mark: 3.0 times as many rows a second. On a CPU a smaller
one, as many at once as there are cores, with one thread each: more than the number of cores cannot come out, and there is no
mark.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_s3t import S3T
from tests.benchmarks.timing import ratio, take_turns
from tests.benchmarks.vision import Classifier, make_trainer

UNITS, BATCH, ROUNDS, MARK = 8, 32, 2, 3.0
ON_GPU = torch.cuda.is_available()
SIZE, STEPS = (224, 200) if ON_GPU else (64, 60)


class Images(Dataset[tuple[Tensor, int]]):
    """Random images, made when they are asked for."""

    def __len__(self) -> int:
        return UNITS * STEPS * BATCH

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(row)), row % 10


class Memory(pl.Callback):
    """Writes down how much memory the process has that trains a unit, its own and its share of what is shared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when a unit's training ends."""
        rollup = Path("/proc/self/smaps_rollup")
        if rollup.exists():
            sizes = {line.split()[0]: line.split()[1] for line in rollup.read_text().splitlines()[1:]}
            (self.folder / f"memory-{os.getpid()}").write_text(f"{sizes['Rss:']} {sizes['Pss:']}")


def fit(folder: Path, number: int, parallel_units: int) -> None:
    """Train the eight units."""
    s3t = S3T(
        folder / str(number),
        shards=UNITS,
        slices=1,
        budget=1,
        subjects="index",
        adapter={"peft_type": "LORA", "r": 8, "target_modules": ["qkv"]},
        parallel_units=parallel_units,
    )
    size: dict[str, Any] = {} if ON_GPU else {"img_size": SIZE, "depth": 6}
    loader = DataLoader(Images(), BATCH, shuffle=True, num_workers=2 if ON_GPU else 0)
    make_trainer(folder, s3t, Memory(folder)).fit(Classifier(**size), loader)


def main() -> int:
    """Time both in turn; return 1 below the mark on a GPU."""
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = UNITS if ON_GPU else min(UNITS, max(cores, 2))
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), iter(range(1000))
        names = ("one after another", f"{at_once} at the same time")
        contestants = {
            names[0]: lambda: fit(folder, next(numbers), 1),
            names[1]: lambda: fit(folder, next(numbers), at_once),
        }
        times = take_turns(contestants, ROUNDS, "training")
        memory = [tuple(map(int, path.read_text().split())) for path in folder.glob("memory-*")]
    throughput = ratio(times[names[0]], times[names[1]])
    where = torch.cuda.get_device_name() if ON_GPU else f"a CPU of {cores} cores"
    table = Table("", "seconds, median", "times as fast", title=f"{UNITS} units of {STEPS} steps on {where}")
    table.add_row(names[0], f"{statistics.median(times[names[0]]):.1f}", "")
    table.add_row(names[1], f"{statistics.median(times[names[1]]):.1f}", str(throughput))
    Console().print(table)
    if memory:
        resident, share = (statistics.median(sizes) / 1024 for sizes in zip(*memory, strict=True))
        print(f"A process that trains has {resident:.0f} MiB resident, {share:.0f} MiB if shared pages are divided.")
    return int(ON_GPU and throughput.median < MARK)


if __name__ == "__main__":
    sys.exit(main())
