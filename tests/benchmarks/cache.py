"""Whole S3T runs with and without the activation cache: all units, the store, everything.

`python -m tests.benchmarks.cache [setting ...]`. A small vision transformer, LoRA on qkv, cumulative slices. What can be
gained follows from the layer groups that are run: a step of stage k runs all of the network forward and k groups
backward without the cache, k and k with it; a validation batch, all of it against k groups. A backward pass through a
frozen block with an adapter costs about what the forward pass does. Mark: 1.3 where only the top half of the blocks is
named, as with large frozen backbones.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from tests.benchmarks.timing import ratio, take_turns
from tests.benchmarks.vision import Classifier, make_trainer, random_images

DEPTH, BATCH, ROUNDS = 12, 32, 3
ADAPTER = {"peft_type": "LORA", "r": 8, "target_modules": ["qkv"]}
MARK = 1.3
NUMBERS = itertools.count()
KINDS: dict[str, Literal["memory", "disk"] | None] = {"without": None, "memory": "memory", "disk": "disk"}


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        slices: Number of slices.
        blocks: How many blocks, from the top, are in layer groups.
        validated: How many rows are validated on after each epoch.
        rows: How many rows are trained on.
        epochs: Epochs a stage.
        data: Cumulative slices, or disjoint ones.
        size: Pixels along an edge.
        marked: Whether the mark is for it.
    """

    slices: int
    blocks: int = DEPTH
    validated: int = 0
    rows: int = 128
    epochs: int = 5
    data: Literal["cumulative", "disjoint"] = "cumulative"
    size: int = 64
    marked: bool = False

    def expected(self) -> float:
        """The ratio of what is run, in blocks; the stem counts as a third of one."""
        without = with_ = 0.0
        for stage in range(1, self.slices + 1):
            own = stage * self.blocks / self.slices
            trained = self.rows * (stage if self.data == "cumulative" else 1) / self.slices
            without += trained * (DEPTH + own) + self.validated * DEPTH
            with_ += trained * 2 * own + self.validated * own
        return without / with_


SETTINGS = {
    "top half, 3 slices, validation": Setting(3, blocks=6, validated=128, rows=256, epochs=8, marked=True),
    "top half, 3 slices": Setting(3, blocks=6),
    "all blocks, 4 slices, validation": Setting(4, validated=64),
    "all blocks, 4 slices": Setting(4),
    "all blocks, 6 slices": Setting(6),
    "all blocks, 4 slices, disjoint": Setting(4, data="disjoint"),
}


class Validated(Classifier):
    """A small vision transformer that is validated."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs a batch's loss."""
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def run(folder: Path, setting: Setting, cache: Any) -> None:
    """A whole run: one shard, two orders."""
    layers = [f"network.blocks.{number}" for number in range(DEPTH - setting.blocks, DEPTH)]
    s3t = S3T(
        folder,
        shards=1,
        slices=setting.slices,
        budget=2,
        adapter=ADAPTER,
        layers=layers,
        head="network.head",
        data=setting.data,
        cache=cache,
    )
    trainer = make_trainer(
        folder,
        s3t,
        max_epochs=setting.epochs,
        num_sanity_val_steps=0,
        limit_val_batches=None if setting.validated else 0,
    )
    train = DataLoader(random_images(setting.rows, setting.size), BATCH, shuffle=True)
    validation = DataLoader(random_images(max(setting.validated, 1), setting.size, seed=1), BATCH)
    trainer.fit(Validated(img_size=setting.size, depth=DEPTH), train, validation)


def main(arguments: list[str] | None = None) -> int:
    """Times the settings, all or those named; returns 1 below the mark."""
    torch.set_num_threads(1)
    chosen = {name: SETTINGS[name] for name in arguments or SETTINGS}
    table = Table(
        "", "without, s", "memory, s", "disk, s", "memory: times as fast", "disk", "expected", title="S3T runs"
    )
    missed = False
    for name, setting in chosen.items():
        with tempfile.TemporaryDirectory() as temporary:
            contestants = {
                kind: lambda cache=cache, setting=setting: run(Path(temporary) / str(next(NUMBERS)), setting, cache)
                for kind, cache in KINDS.items()
            }
            times = take_turns(contestants, ROUNDS, name)
        ratios = {kind: ratio(times["without"], times[kind]) for kind in ("memory", "disk")}
        seconds = (f"{statistics.median(times[kind]):.1f}" for kind in KINDS)
        table.add_row(name, *seconds, str(ratios["memory"]), str(ratios["disk"]), f"{setting.expected():.2f}")
        missed = missed or (setting.marked and ratios["memory"].median < MARK)
    Console().print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
