"""Picklable substitutes for the script's own objects: loggers, bars, a running profiler."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import PyTorchProfiler

from lightning_s3t.engine.lightning_internals import profiler_to_send, saves_config
from lightning_s3t.executors.processes.recorded_logs import RecordingLogger


class SilentProgressBar(ProgressBar):
    """Shows nothing: the script's process shows how far all units are."""

    def enable(self) -> None:
        """Called when it may show things again."""

    def disable(self) -> None:
        """Called when it must be silent."""


def substitutes(trainer: pl.Trainer) -> dict[int, object]:
    """Return substitutes for a trainer's loggers, bars, profiler and saved config, by the `id` of the originals.

    Args:
        trainer: The trainer, after its loggers have started their experiments.
    """
    found: dict[int, object] = {}
    if trainer.strategy.launcher is not None:  # the processes of the other ranks; those of units already exist
        found[id(trainer.strategy.launcher)] = None
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if isinstance(profiler, PyTorchProfiler):
        found[id(profiler)] = profiler_to_send(profiler)
    for position, logger in enumerate(trainer.loggers):
        found[id(logger)] = recording = RecordingLogger(position, logger)
        recording.look_at_experiment(logger)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ProgressBar):
            found[id(callback)] = SilentProgressBar()
        # its work is done, and a parser cannot be sent
        elif saves_config(callback):
            found[id(callback)] = pl.Callback()
    return found
