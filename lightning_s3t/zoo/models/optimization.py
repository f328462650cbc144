"""The optimizer and the learning rate's course over a fit, made afresh at every call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR

from lightning_s3t.errors import ConfigurationError

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class Optimization:
    """The optimization of a module.

    Args:
        learning_rate: The rate after the warmup.
        weight_decay: The weight decay.
        optimizer: "adamw" or "sgd" (with momentum 0.9).
        schedule: The schedule after the warmup: linear or cosine decay to 0, or constant.
        warmup: The share of the steps in which the rate rises from 0.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> [round(Optimization(0.1, schedule="linear", warmup=0.2).factor(step, steps=10), 3) for step in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """

    learning_rate: float
    weight_decay: float = 0.0
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "linear"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigurationError(f"Expected argument `learning_rate` to be positive but got {self.learning_rate}.")
        if self.weight_decay < 0:
            raise ConfigurationError(f"Expected argument `weight_decay` to be 0 or more but got {self.weight_decay}.")
        if not 0 <= self.warmup < 1:
            raise ConfigurationError(f"Expected argument `warmup` to be from 0 to below 1 but got {self.warmup}.")
        for name, value, known in (
            ("optimizer", self.optimizer, get_args(Optimizer)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in known:
                raise ConfigurationError(f"Expected argument `{name}` to be one of {known} but got {value!r}.")

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate.

        Args:
            step: The number of the step, from 0.
            steps: Total number of steps.
        """
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        done = min(1.0, (step - rising) / max(1, steps - rising))
        if self.schedule == "linear":
            return 1 - done
        return (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1.0

    def configure(self, module: pl.LightningModule) -> OptimizerLRSchedulerConfig:
        """Create the optimizer for a module's current trainable parameters, and the schedule over its trainer's steps.

        Args:
            module: The module, with its trainer.
        """
        # adapters are drawn for each unit, so parameters are collected at every call
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        schedule = LambdaLR(optimizer, self._factors(int(module.trainer.estimated_stepping_batches)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factors(self, steps: int) -> Callable[[int], float]:
        return lambda step: self.factor(step, steps)
