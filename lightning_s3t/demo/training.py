"""The trainings of the demo: the public one, the full fine-tune, and S3T's."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_s3t.callbacks import S3T
from lightning_s3t.demo.data import DigitsData, Rows
from lightning_s3t.demo.model import DigitClassifier

ADAPTER: dict[str, str | int | float | bool] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "use_rslora": True,
}


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        seed: What everything is drawn from.
        people: How many people own the private rows.
        shards: Number of shards.
        slices: Number of slices of a shard.
        budget: Number of orders of the slices.
        public_epochs: Epochs of the public training.
        full_epochs: Epochs of the full fine-tune.
        epochs: Epochs of each stage of S3T.
        width: The transformer's embedding size.
        depth: Its number of blocks.
    """

    seed: int = 0
    people: int = 100
    shards: int = 3
    slices: int = 4
    budget: int = 4
    public_epochs: int = 50
    full_epochs: int = 30
    epochs: int = 8
    width: int = 64
    depth: int = 4


QUICK = DemoSettings(
    people=40, shards=2, slices=2, budget=2, public_epochs=2, full_epochs=2, epochs=1, width=32, depth=2
)
"""Sizes for a look at the course of things, not at the accuracies."""


def make_trainer(epochs: int, *callbacks: pl.Callback, progress: bool = False) -> pl.Trainer:
    """Returns a trainer without files or chatter.

    Args:
        epochs: How many.
        callbacks: What to add.
        progress: Whether to show a bar.
    """
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=list(callbacks),
    )


def train_publicly(rows: Rows, settings: DemoSettings) -> DigitClassifier:
    """Trains a model on public rows: what a team would download.

    Args:
        rows: The public rows.
        settings: Sizes and seed.
    """
    torch.manual_seed(settings.seed)
    model = DigitClassifier(learning_rate=3e-3, width=settings.width, depth=settings.depth)
    make_trainer(settings.public_epochs).fit(model, datamodule=DigitsData(rows))
    return model


def fine_tune_fully(model: DigitClassifier, rows: Rows, settings: DemoSettings) -> tuple[DigitClassifier, float]:
    """Fine-tunes every parameter on all private rows: the best that can be had, and cannot forget.

    Args:
        model: The publicly trained model; it is copied.
        rows: The private rows.
        settings: Sizes and seed.

    Returns:
        The model, and the seconds that it took.
    """
    torch.manual_seed(settings.seed)
    full = copy.deepcopy(model)
    full.hparams["learning_rate"] = 2e-3
    start = time.perf_counter()
    make_trainer(settings.full_epochs).fit(full, datamodule=DigitsData(rows))
    return full, time.perf_counter() - start


def train_by_slices(
    model: DigitClassifier,
    rows: Rows,
    store: Path,
    settings: DemoSettings,
    sequences: str = "cyclic",
    budget: int | None = None,
    progress: bool = False,
) -> float:
    """Trains by S3T: the user's module and trainer, and one callback.

    Args:
        model: The publicly trained model.
        rows: The private rows.
        store: Where to keep what is trained.
        settings: Sizes and seed.
        sequences: How orders are chosen.
        budget: Number of orders; None for the settings'.
        progress: Whether to show a bar.

    Returns:
        The seconds that it took.
    """
    s3t = S3T(
        store=store,
        shards=settings.shards,
        slices=settings.slices,
        budget=settings.budget if budget is None else budget,
        sequences=sequences,
        subjects="owners",
        adapter=ADAPTER,
        seed=settings.seed,
    )
    start = time.perf_counter()
    make_trainer(settings.epochs, s3t, progress=progress).fit(model, datamodule=DigitsData(rows))
    return time.perf_counter() - start
