"""A language model that is taught to answer."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.text import Perplexity

from lightning_s3t.zoo.models.optimization import Optimization, Optimizer, Schedule
from lightning_s3t.zoo.models.pretrained import load_model

IGNORED = -100
"""The label of a token that is read and not learnt: of the prompt, and of padding."""

Batch = dict[str, Tensor]


class CausalLM(pl.LightningModule):
    """Learns to predict the next token with a transformers model.

    Batches have `input_ids`, `attention_mask` and `labels` of one shape, `[rows, tokens]`; a label of -100 is not
    learnt. Logs `train/loss`, and `loss` and `perplexity` as `val/...` and `test/...`.

    Args:
        name: The model's name on the hub, or its folder.
        config: Instead of a name, a configuration with its `model_type`: weights are drawn.
        learning_rate: The rate after the warmup.
        weight_decay: The weight decay.
        optimizer: The optimizer.
        schedule: The schedule of the learning rate after the warmup.
        warmup: The share of the steps in which the learning rate rises.

    Raises:
        ConfigurationError: The model does not exist.

    Example:
        >>> import torch
        >>> tiny = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        ...         "num_attention_heads": 1, "vocab_size": 50}
        >>> CausalLM(config=tiny)({"input_ids": torch.ones(2, 5, dtype=torch.long)}).shape
        torch.Size([2, 5, 50])
    """

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        optimizer: Optimizer = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimization = Optimization(learning_rate, weight_decay, optimizer, schedule, warmup)
        # a cache of earlier tokens is for generation; it cannot be averaged over shards
        self.network = load_model("AutoModelForCausalLM", name, config, use_cache=False)
        self.val_perplexity = Perplexity(ignore_index=IGNORED)
        self.test_perplexity = Perplexity(ignore_index=IGNORED)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the logits of the next token, `[rows, tokens, vocabulary]`.

        Args:
            batch: The output of the tokenizer; labels are ignored.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = self.network(**inputs).logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns a batch's loss.

        Args:
            batch: Tokens and labels.
            batch_idx: Its number.
        """
        logits, labels = _shift(self(batch), batch["labels"])
        loss = _loss(logits, labels)
        self.log("train/loss", loss, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs a batch's loss and perplexity.

        Args:
            batch: Tokens and labels.
            batch_idx: Its number.
        """
        self._evaluate(batch, "val", self.val_perplexity)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs a batch's loss and perplexity.

        Args:
            batch: Tokens and labels.
            batch_idx: Its number.
        """
        self._evaluate(batch, "test", self.test_perplexity)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns a batch's logits.

        Args:
            batch: Tokens.
            batch_idx: Its number.
        """
        logits: Tensor = self(batch)
        return logits

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Makes the optimizer and the schedule."""
        return self.optimization.configure(self)

    def _evaluate(self, batch: Batch, part: str, perplexity: Perplexity) -> None:
        logits, labels = _shift(self(batch), batch["labels"])
        self.log(f"{part}/loss", _loss(logits, labels), batch_size=len(labels))
        perplexity.update(logits, labels)
        self.log(f"{part}/perplexity", perplexity, batch_size=len(labels))


def _shift(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Align each token with the prediction made before it was read."""
    return logits[:, :-1].float(), labels[:, 1:]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
