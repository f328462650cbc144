"""Provenance of an ordinary fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.engine.run_record import RunRecord


class ProvenanceRecorder(pl.Callback):
    """Record a training run: settings, seed, versions, trainable parameters, metrics, duration.

    It writes one JSON file per fit. `S3T` keeps the same record of every unit in its store, with the unit's
    coordinates, subjects, layers and parent.

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
        self._running: RunRecord | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training begins: starts the record."""
        self._running = RunRecord(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training ends: completes the record and writes it."""
        if self._running is None:
            return
        self.record, self._running = self._running.complete(), None
        folder = trainer.log_dir or trainer.default_root_dir  # read on all ranks: it is broadcast
        if trainer.is_global_zero:
            path = self.path or Path(folder) / "provenance.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.record, indent=2, sort_keys=True) + "\n")
