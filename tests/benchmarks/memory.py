"""Peak memory of training against a plain fine-tune with PEFT: `python -m tests.benchmarks.memory`.

The same ViT, the same batches, the same Lightning trainer: once with the callback, all stages one after the other in the
script's process (`isolation="none"`; for processes of their own see `isolation.py`); once with `get_peft_model` and every
layer's adapters. Each run is a process of its own, and what counts is its peak of resident memory
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
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from tests.benchmarks.timing import Ratio, ratio
from tests.benchmarks.vision import Classifier, RepeatedImages, make_trainer

SHARDS, SLICES, STEPS, BATCH, SIZE, ROUNDS = 1, 6, 2, 16, 96, 3
MARK = 1.0


def make_module(whole: bool) -> Classifier:
    """A vision transformer; with `whole`, PEFT puts an adapter on every layer at once."""
    module = Classifier("vit_small_patch16_224", img_size=SIZE)
    if whole:
        config = peft.LoraConfig(r=16, target_modules=["qkv"], modules_to_save=["head"])
        module.network = peft.get_peft_model(module.network, config)  # type: ignore[arg-type]
    return module


def fit(folder: Path, *callbacks: pl.Callback, whole: bool) -> None:
    """Train with the callbacks."""
    rows = 4 * SHARDS * SLICES * STEPS * BATCH
    trainer = make_trainer(folder, *callbacks, limit_train_batches=STEPS)
    trainer.fit(make_module(whole), DataLoader(RepeatedImages(rows, SIZE), BATCH, shuffle=True, drop_last=True))


def by_callback() -> None:
    """All stages of a shard, one after the other."""
    adapter = {"peft_type": "LORA", "r": 16, "target_modules": ["qkv"]}
    with tempfile.TemporaryDirectory() as name:
        s3t = S3T(
            Path(name) / "store",
            shards=SHARDS,
            slices=SLICES,
            budget=1,
            subjects="index",
            adapter=adapter,
            isolation="none",
        )
        fit(Path(name), s3t, whole=False)


def by_peft() -> None:
    """One fine-tune of all layers' adapters."""
    with tempfile.TemporaryDirectory() as name:
        fit(Path(name), whole=True)


def peak_of(run: Callable[[], None]) -> float:
    """Return the peak of a run in MiB, in a process of its own."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main() -> int:
    """Measure both in turn; return 1 above the mark."""
    found: dict[str, list[float]] = {"the callback": [], "PEFT": []}
    context = multiprocessing.get_context("spawn")
    for _ in track(range(ROUNDS), "training", console=Console(stderr=True), transient=True):
        for name, run in (("the callback", by_callback), ("PEFT", by_peft)):
            with context.Pool(1) as pool:
                found[name].append(pool.apply(peak_of, (run,)))
                pool.close()
                pool.join()
    table = Table("", "MiB, median", "least", "most", title="Peak memory of training, above that before the model")
    for name, peaks in found.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(peaks), min(peaks), max(peaks))))
    Console().print(table)
    compared: Ratio = ratio(found["the callback"], found["PEFT"])
    print(f"The callback against PEFT: {compared} (mark: {MARK:g}).")
    return int(compared.median > MARK)


if __name__ == "__main__":
    sys.exit(main())
