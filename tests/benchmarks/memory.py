"""Peak memory of training against a plain fine-tune with PEFT: `python -m tests.benchmarks.memory`.

The same ViT, the same batches, the same Lightning trainer: once with the callback, all stages one after the other; once with
`get_peft_model` and every layer's adapters. Each run is a process of its own, and what counts is its peak of resident memory
above that before the model is made; on a GPU, what torch has allocated there at most. Mark: no more than the fine-tune.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import peft
import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_s3t import S3T
from tests.benchmarks.timing import Ratio, ratio

SHARDS, SLICES, STEPS, BATCH, SIZE, ROUNDS = 1, 6, 2, 16, 96, 3
MARK = 1.0


class Images(Dataset[tuple[Tensor, int]]):
    """So many rows, of a few images over and over."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row % 4], row % 10


class Classifier(pl.LightningModule):
    """A vision transformer; with `whole`, PEFT puts an adapter on every layer at once."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network: nn.Module = timm.create_model("vit_small_patch16_224", img_size=SIZE, num_classes=10)
        if whole:
            config = peft.LoraConfig(r=16, target_modules=["qkv"], modules_to_save=["head"])
            self.network = peft.get_peft_model(self.network, config)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns a batch's loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Makes the optimizer."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def fit(folder: Path, *callbacks: pl.Callback, whole: bool) -> None:
    """Trains with the callbacks."""
    rows = 4 * SHARDS * SLICES * STEPS * BATCH
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=STEPS,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    trainer.fit(Classifier(whole), DataLoader(Images(rows), BATCH, shuffle=True, drop_last=True))


def by_callback() -> None:
    """All stages of a shard, one after the other."""
    adapter = {"peft_type": "LORA", "r": 16, "target_modules": ["qkv"]}
    with tempfile.TemporaryDirectory() as name:
        s3t = S3T(Path(name) / "store", shards=SHARDS, slices=SLICES, budget=1, adapter=adapter)
        fit(Path(name), s3t, whole=False)


def by_peft() -> None:
    """One fine-tune of all layers' adapters."""
    with tempfile.TemporaryDirectory() as name:
        fit(Path(name), whole=True)


def peak_of(run: Callable[[], None]) -> float:
    """Returns the peak of a run in MiB, in a process of its own."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main() -> int:
    """Measures both in turn; returns 1 above the mark."""
    found: dict[str, list[float]] = {"the callback": [], "PEFT": []}
    context = multiprocessing.get_context("spawn")
    for _ in track(range(ROUNDS), "training", console=Console(stderr=True), transient=True):
        for name, run in (("the callback", by_callback), ("PEFT", by_peft)):
            with context.Pool(1) as pool:
                found[name].append(pool.apply(peak_of, (run,)))
    table = Table("", "MiB, median", "least", "most", title="Peak memory of training, above that before the model")
    for name, peaks in found.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(peaks), min(peaks), max(peaks))))
    Console().print(table)
    compared: Ratio = ratio(found["the callback"], found["PEFT"])
    print(f"The callback against PEFT: {compared} (mark: {MARK:g}).")
    return int(compared.median > MARK)


if __name__ == "__main__":
    sys.exit(main())
