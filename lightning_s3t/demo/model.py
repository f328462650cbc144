"""A small timm vision transformer in a LightningModule, as a script would have one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s3t.demo.data import Rows


class DigitClassifier(pl.LightningModule):
    """Classifies digits.

    Args:
        learning_rate: The peak of a one-cycle schedule.
        width: The transformer's embedding size.
        depth: Its number of blocks.
    """

    def __init__(self, learning_rate: float, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = VisionTransformer(
            img_size=8,
            patch_size=4,
            in_chans=1,
            num_classes=10,
            embed_dim=width,
            depth=depth,
            num_heads=4,
            mlp_ratio=2.0,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits.

        Args:
            images: `[rows, 1, 8, 8]`.
        """
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns a batch's loss.

        Args:
            batch: Images and labels.
            batch_idx: Its number.
        """
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Makes AdamW with a one-cycle schedule over the whole of the training."""
        rate = float(self.hparams["learning_rate"])
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=0.01, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def accuracy(model: nn.Module, rows: Rows) -> float:
    """Returns the share of rows that a model classifies correctly.

    Args:
        model: A module that gives logits.
        rows: What to classify.
    """
    training = model.training
    model.eval()
    share = float((model(rows.images).argmax(-1) == rows.labels).float().mean())
    model.train(training)  # a trainer takes a module in the mode that it finds it in
    return share
