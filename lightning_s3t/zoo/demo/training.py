"""The trainings of the demo: the public one, the full fine-tune, and S3T's."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from lightning_s3t.zoo.datamodules import OwnedRows
from lightning_s3t.zoo.models import ImageClassifier

ADAPTER: dict[str, str | int | float | bool] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "use_rslora": True,
}


@dataclass(frozen=True)
class DemoSettings:
    """The size of the demo.

    Attributes:
        seed: Seed of everything random.
        people: Number of people who own the private rows.
        shards: Number of shards.
        slices: Number of slices of a shard.
        budget: Number of sequences of the slices.
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
        epochs: Number of epochs.
        callbacks: Callbacks to add.
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


def make_model(settings: DemoSettings) -> ImageClassifier:
    """Return a small vision transformer with random weights.

    Args:
        settings: Sizes and seed.
    """
    torch.manual_seed(settings.seed)
    return ImageClassifier(
        "vit_tiny_patch16_224",
        num_classes=10,
        pretrained=False,
        model_arguments={
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "embed_dim": settings.width,
            "depth": settings.depth,
            "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        learning_rate=3e-3,
        weight_decay=0.01,
        schedule="cosine",
        warmup=0.3,
    )


def train_publicly(rows: OwnedRows, settings: DemoSettings) -> ImageClassifier:
    """Train a model on public rows, as a stand-in for a downloaded model.

    Args:
        rows: The public rows.
        settings: Sizes and seed.
    """
    model = make_model(settings)
    make_trainer(settings.public_epochs).fit(model, _batches(rows))
    return model


def fine_tune_fully(model: ImageClassifier, rows: OwnedRows, settings: DemoSettings) -> tuple[ImageClassifier, float]:
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
    full.optimization = replace(full.optimization, learning_rate=2e-3)
    start = time.perf_counter()
    make_trainer(settings.full_epochs).fit(full, _batches(rows))
    return full, time.perf_counter() - start


def train_by_slices(
    model: ImageClassifier,
    rows: OwnedRows,
    store: Path,
    settings: DemoSettings,
    sequences: str = "cyclic",
    budget: int | None = None,
    progress: bool = False,
    floor: bool = False,
) -> float:
    """Trains by S3T: the user's module and trainer, and one callback.

    Args:
        model: The publicly trained model.
        rows: The private rows.
        store: The folder of the store.
        settings: Sizes and seed.
        sequences: The planner.
        budget: Number of sequences; None for the settings'.
        progress: Whether to show a bar.
        floor: Whether a closed-form head on the pretrained features answers too.

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
        floor=floor,
        partition="public",  # so that everyone gets the same numbers
    )
    start = time.perf_counter()
    make_trainer(settings.epochs, s3t, progress=progress).fit(model, _batches(rows))
    return time.perf_counter() - start


def _batches(rows: OwnedRows) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=32, shuffle=True)
