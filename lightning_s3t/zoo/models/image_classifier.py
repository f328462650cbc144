"""An image classifier on any timm model."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.extras import import_extra
from lightning_s3t.zoo.models.optimization import Optimization, Optimizer, Schedule
from lightning_s3t.zoo.models.scores import answers, make_scores


class ImageClassifier(pl.LightningModule):
    """Classifies images with a timm model.

    Logs `train/loss`, `val/loss`, `val/accuracy` and `test/accuracy`.

    Args:
        name: The model's name in timm: `timm.list_models(pretrained=True)`.
        num_classes: Number of classes.
        pretrained: Whether to load the weights that timm has for it; otherwise they are drawn.
        model_arguments: More for `timm.create_model`, for example {"img_size": 64}.
        learning_rate: The rate after the warmup.
        weight_decay: The weight decay.
        optimizer: The optimizer.
        schedule: The schedule of the learning rate after the warmup.
        warmup: The share of the steps in which the learning rate rises.

    Raises:
        ConfigurationError: timm is not installed, does not have the model, or does not take the arguments.

    Example:
        >>> import torch
        >>> model = ImageClassifier("test_vit", num_classes=10, pretrained=False, model_arguments={"img_size": 32})
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        pretrained: bool = True,
        model_arguments: dict[str, Any] | None = None,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        optimizer: Optimizer = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimization = Optimization(learning_rate, weight_decay, optimizer, schedule, warmup)
        timm = import_extra("timm", "Models of images", "images")
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), n=3)
            raise ConfigurationError(
                f"timm {timm.__version__} has no model {name!r}. Expected one of timm.list_models(); close to it are: "
                f"{', '.join(near) or 'none'}."
            )
        try:
            self.network = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, **(model_arguments or {})
            )
        except TypeError as error:
            raise ConfigurationError(
                f"timm's {name} does not take model_arguments={model_arguments} ({error}). Leave out what it does not "
                "know."
            ) from error
        self.val_scores = make_scores(["accuracy"], num_classes, "val")
        self.test_scores = make_scores(["accuracy"], num_classes, "test")

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, `[rows, classes]`.

        Args:
            images: `[rows, channels, height, width]`.
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
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs a batch's loss and accuracy.

        Args:
            batch: Images and labels.
            batch_idx: Its number.
        """
        images, labels = batch
        logits = self(images)
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.val_scores.update(answers(logits), labels)
        self.log_dict(self.val_scores)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs a batch's accuracy.

        Args:
            batch: Images and labels.
            batch_idx: Its number.
        """
        images, labels = batch
        self.test_scores.update(answers(self(images)), labels)
        self.log_dict(self.test_scores)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns a batch's logits.

        Args:
            batch: Images and labels.
            batch_idx: Its number.
        """
        logits: Tensor = self(batch[0])
        return logits

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Makes the optimizer and the schedule."""
        return self.optimization.configure(self)
