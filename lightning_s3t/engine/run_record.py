"""The record of a training run: its inputs and results."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_s3t.engine.trainer_settings import trainer_settings
from lightning_s3t.engine.versions import versions


class RunRecord:
    """The record of a training run: settings, seed, versions, trainable parameters, metrics, duration.

    Args:
        trainer: The trainer, when training begins.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._started = time.monotonic()
        module, seed = trainer.lightning_module, os.environ.get("PL_GLOBAL_SEED")
        self._record: dict[str, Any] = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            # a process that the script has started knows the script's own classes by another name
            "model": f"{type(module).__module__}.{type(module).__qualname__}".replace("__mp_main__", "__main__"),
            "trainable": [name for name, parameter in module.named_parameters() if parameter.requires_grad],
            "global_seed": int(seed) if seed is not None else None,
            "settings": trainer_settings(trainer),
            "versions": versions(),
        }

    def complete(self) -> dict[str, Any]:
        """Return the record, JSON-ready, when training has ended."""
        return {
            **self._record,
            "epochs": self._trainer.current_epoch,
            "steps": self._trainer.global_step,
            "metrics": metrics_of(self._trainer),
            "duration_s": round(time.monotonic() - self._started, 3),
        }


def metrics_of(trainer: pl.Trainer) -> dict[str, float]:
    """Return the newest logged metrics as plain numbers.

    Args:
        trainer: The trainer.
    """
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    }


def score_of(trainer: pl.Trainer) -> float | None:
    """Return the newest value of the metric that the script monitors, where higher is better.

    This is the metric of its ModelCheckpoint, otherwise of its EarlyStopping.

    Args:
        trainer: The trainer.

    Returns:
        The value, negated where lower is better; None if nothing is monitored.
    """
    for callback in (*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks):
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor in trainer.callback_metrics:
            value = float(trainer.callback_metrics[monitor])
            return -value if getattr(callback, "mode", "min") == "min" else value
    return None
