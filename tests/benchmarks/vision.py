"""What the benchmarks train and serve: vision transformers, on a GPU where there is one, by a trainer that only trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = 10


class Classifier(pl.LightningModule):
    """A vision transformer of timm's; options are those of `timm.create_model`."""

    def __init__(self, name: str = "vit_tiny_patch16_224", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a batch's loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class RepeatedImages(Dataset[tuple[Tensor, int]]):
    """So many rows, of a few images over and over."""

    def __init__(self, rows: int, size: int) -> None:
        self.rows = rows
        self.images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row % 4], row % CLASSES


def random_images(rows: int, size: int, seed: int = 0) -> TensorDataset:
    """Draw images and labels."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, size, size, generator=draw)
    return TensorDataset(images, torch.randint(CLASSES, (rows,), generator=draw))


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A trainer that does nothing but train, for one epoch if the options don't say otherwise."""
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "gpu" if DEVICE == "cuda" else "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**defaults, **options}, callbacks=list(callbacks), default_root_dir=folder)
