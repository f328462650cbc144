"""Provenance: what a training run was made from, and what it made."""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

PACKAGES = (
    "lightning-s3t",
    "lightning",
    "torch",
    "peft",
    "torchmetrics",
    "timm",
    "transformers",
    "safetensors",
)


class ProvenanceRecorder(pl.Callback):
    """Records a training run: settings, seed, versions, what was trainable, metrics, duration.

    On its own it writes one JSON file per fit. `S3T` uses it for every unit, and adds the unit's coordinates,
    subjects, layers and parent.

    Args:
        path: The file; None for `provenance.json` in the trainer's log folder.

    Attributes:
        record: The newest record, JSON-ready.

    Example:
        >>> recorder = ProvenanceRecorder()
        >>> trainer = pl.Trainer(callbacks=[recorder], logger=False)
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.record: dict[str, Any] = {}
        self._started = 0.0

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a record.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._started = time.monotonic()
        seed = os.environ.get("PL_GLOBAL_SEED")
        self.record = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            # a process that the script has started knows the script's own classes by another name
            "model": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}".replace("__mp_main__", "__main__"),
            "trainable": [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad],
            "global_seed": int(seed) if seed is not None else None,
            "settings": trainer_settings(trainer),
            "versions": versions(),
        }

    def end(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Completes the record.

        Args:
            trainer: The trainer.

        Returns:
            The record.
        """
        self.record.update(
            epochs=trainer.current_epoch,
            steps=trainer.global_step,
            metrics=metrics_of(trainer),
            duration_s=round(time.monotonic() - self._started, 3),
        )
        return self.record

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training begins: starts the record.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self.begin(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training ends: completes the record and writes it.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        record = self.end(trainer)
        folder = trainer.log_dir or trainer.default_root_dir  # asked on all ranks: it is broadcast
        if trainer.is_global_zero:
            path = self.path or Path(folder) / "provenance.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that take part.

    Example:
        >>> "torch" in versions()
        True
    """
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    # the packages' metadata are files, and a process has one version of each
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def trainer_settings(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the trainer's settings that bear on what is learnt, JSON-ready.

    Args:
        trainer: The trainer, with its optimizers configured.
    """
    loop = trainer.fit_loop
    return {
        "max_epochs": loop.max_epochs,
        "min_epochs": loop.min_epochs,
        "max_steps": loop.max_steps,
        "min_steps": loop.min_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": str(trainer.gradient_clip_algorithm) if trainer.gradient_clip_algorithm else None,
        "limit_train_batches": trainer.limit_train_batches,
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
        "optimizers": [_optimizer_settings(optimizer) for optimizer in trainer.optimizers],
    }


def metrics_of(trainer: pl.Trainer) -> dict[str, float]:
    """Returns the newest logged metrics as plain numbers.

    Args:
        trainer: The trainer.
    """
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    }


def score_of(trainer: pl.Trainer) -> float | None:
    """Returns the newest value of what the script monitors, higher being better.

    That is the metric of its ModelCheckpoint, or else of its EarlyStopping.

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


def _optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"class": type(optimizer).__name__, **plain(optimizer.defaults)}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a mapping's values that JSON holds, in mappings within it too.

    Args:
        values: Any mapping with string keys.

    Example:
        >>> plain({"lr": 0.1, "betas": (0.9, 0.99), "f": print})
        {'lr': 0.1, 'betas': [0.9, 0.99]}
        >>> plain({"decay": {"rate": 0.5, "f": print}})
        {'decay': {'rate': 0.5}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, (str, int, float, bool)) or value is None:
            found[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(x, (str, int, float, bool)) for x in value):
            found[name] = list(value)
        elif isinstance(value, Mapping):
            found[str(name)] = plain(value)
    return found
