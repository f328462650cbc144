"""What compiling costs the second unit of a stage: `python -m tests.benchmarks.compiled`.

Two shards of two stages train a small ViT that inductor compiles, from an empty TORCHINDUCTOR_CACHE_DIR. Each unit compiles
in its own process, at its first batch; a stage's adapters make a graph of their own. The first unit of a stage leaves what
it has compiled in the folder, the second finds it there. Mark: 0.3 times the seconds of the first batch at stage 1. At stage
2 the first unit finds parts of stage 1's graph there already.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from tests.benchmarks.training import ADAPTER
from tests.benchmarks.vision import Classifier, make_trainer, random_images

SHARDS, SLICES, BATCHES, BATCH, SIZE, DEPTH = 2, 2, 4, 4, 32, 4
MARK = 0.3


class FirstBatch(pl.Callback):
    """Writes how long each unit's first batch has taken, and its last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        """Called before each batch."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *outputs: Any) -> None:
        """Called after each batch."""
        if trainer.global_step in (1, BATCHES):
            with self.path.open("a") as file:
                file.write(f"{time.perf_counter() - self.start}\n")


def main() -> int:
    """Train once; return 1 above the mark."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
        module: Any = Classifier(img_size=SIZE, depth=DEPTH)
        module.network = torch.compile(module.network)
        s3t = S3T(folder / "store", SHARDS, SLICES, budget=1, subjects="index", adapter=ADAPTER)
        rows = DataLoader(random_images(200, SIZE), BATCH, shuffle=True, drop_last=True)
        make_trainer(folder, s3t, FirstBatch(folder / "times"), limit_train_batches=BATCHES).fit(module, rows)
        seconds = [float(line) for line in (folder / "times").read_text().split()]
    table = Table("stage", "the first unit's first batch", "the second unit's", "ratio", "a later batch")
    firsts, lasts = seconds[0::2], seconds[1::2]  # of each unit; those of a shard follow each other
    ratios = [firsts[SLICES + stage] / firsts[stage] for stage in range(SLICES)]
    for stage, found in enumerate(ratios):
        table.add_row(
            str(stage + 1),
            f"{firsts[stage]:.1f} s",
            f"{firsts[SLICES + stage]:.1f} s",
            f"{found:.2f}",
            f"{lasts[stage]:.3f} s",
        )
    Console().print(table)
    print(f"The second unit of stage 1 against the first: {ratios[0]:.2f} (mark: {MARK:g}).")
    return int(ratios[0] > MARK)


if __name__ == "__main__":
    sys.exit(main())
