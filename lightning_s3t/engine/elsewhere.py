"""Fits in addition to the script's own, with logs and checkpoints elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_s3t.engine.lightning_internals import silent_logger


@contextmanager
def writing_elsewhere(trainer: pl.Trainer, folder: Path) -> Iterator[None]:
    """Silence the loggers and send the checkpoints to a folder while the block runs.

    Args:
        trainer: The script's trainer.
        folder: The folder.
    """
    loggers = trainer.loggers
    checkpoints = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folders = [callback.dirpath for callback in checkpoints]
    trainer.loggers = [silent_logger() for _ in loggers]
    for number, callback in enumerate(checkpoints):
        callback.dirpath = str(folder / f"checkpoints-{number}")
    try:
        yield
    finally:
        trainer.loggers = loggers
        for callback, own in zip(checkpoints, folders, strict=True):
            callback.dirpath = own
