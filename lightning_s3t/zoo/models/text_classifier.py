"""A text classifier, or a regression on texts, on any encoder or decoder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from lightning_s3t.zoo.models.optimization import Optimization, Optimizer, Schedule
from lightning_s3t.zoo.models.pretrained import load_model
from lightning_s3t.zoo.models.scores import Score, answers, make_scores

Batch = dict[str, Tensor]


class TextClassifier(pl.LightningModule):
    """Classifies texts, or pairs of them, with a transformers model.

    Batches are the output of its tokenizer, with `labels`. Logs `train/loss`, `val/loss` and each metric as `val/...`
    and `test/...`.

    Args:
        name: The model's name on the hub, or its folder.
        num_classes: Number of classes; 1 for a regression.
        config: Instead of a name, a configuration with its `model_type`: weights are drawn.
        metrics: The logged metrics: accuracy, f1, matthews; pearson and spearman for a regression.
        learning_rate: The rate after the warmup.
        weight_decay: The weight decay.
        optimizer: The optimizer.
        schedule: The schedule of the learning rate after the warmup.
        warmup: The share of the steps in which the learning rate rises.

    Raises:
        ConfigurationError: The model does not exist, or a metric does not fit.

    Example:
        >>> import torch
        >>> tiny = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
        >>> model = TextClassifier(num_classes=3, config=tiny)
        >>> model({"input_ids": torch.ones(2, 5, dtype=torch.long)}).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        name: str | None = None,
        num_classes: int = 2,
        config: dict[str, Any] | None = None,
        metrics: Sequence[Score] = ("accuracy",),
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        optimizer: Optimizer = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimization = Optimization(learning_rate, weight_decay, optimizer, schedule, warmup)
        self.val_scores = make_scores(metrics, num_classes, "val")
        self.test_scores = make_scores(metrics, num_classes, "test")
        self.network = load_model("AutoModelForSequenceClassification", name, config, num_labels=num_classes)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the logits, `[rows, classes]`.

        Args:
            batch: The output of the tokenizer; labels are ignored.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = self.network(**inputs).logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns a batch's loss.

        Args:
            batch: The output of the tokenizer, with labels.
            batch_idx: Its number.
        """
        loss = _loss(self(batch), batch["labels"])
        self.log("train/loss", loss, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs a batch's loss and metrics.

        Args:
            batch: The output of the tokenizer, with labels.
            batch_idx: Its number.
        """
        logits, labels = self(batch), batch["labels"]
        self.log("val/loss", _loss(logits, labels), batch_size=len(labels))
        self.val_scores.update(answers(logits), labels)
        self.log_dict(self.val_scores, batch_size=len(labels))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs a batch's metrics.

        Args:
            batch: The output of the tokenizer, with labels.
            batch_idx: Its number.
        """
        self.test_scores.update(answers(self(batch)), batch["labels"])
        self.log_dict(self.test_scores, batch_size=len(batch["labels"]))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns a batch's logits.

        Args:
            batch: The output of the tokenizer.
            batch_idx: Its number.
        """
        logits: Tensor = self(batch)
        return logits

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Makes the optimizer and the schedule."""
        return self.optimization.configure(self)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[..., 0].float(), labels.float())
    return F.cross_entropy(logits.float(), labels)
