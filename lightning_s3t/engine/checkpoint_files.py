"""Knowing every checkpoint that is written during a unit, so that it can be erased with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.io import AsyncCheckpointIO, CheckpointIO

from lightning_s3t.engine.lightning_internals import leave_out_earlier_steps
from lightning_s3t.errors import UnsupportedError


class RecordingCheckpointIO(CheckpointIO):
    """Reports every checkpoint before it is written, and leaves the writing to the trainer's own plugin.

    It records written files, not ModelCheckpoint's lists: these are reset between units, and may name files of other
    runs.

    Lightning writes to a temporary file and moves that to its place. It is in a folder of the store, so that a crash
    does not leave files that requests cannot find.

    Args:
        inner: The trainer's own plugin.
        record: Called with each path, before the file exists.
        scratch: The folder for temporary files.
        first_step: The position of the loggers' step axis when the unit started.
    """

    def __init__(self, inner: CheckpointIO, record: Callable[[Path], None], scratch: Path, first_step: int) -> None:
        self.inner = inner
        self.record = record
        self.scratch = scratch
        self.first_step = first_step

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Report the path, then write the checkpoint, and wait until it exists.

        Args:
            checkpoint: The checkpoint.
            path: The target.
            storage_options: Passed on.

        Raises:
            UnsupportedError: The path is not a local one, so the file could not be erased; or the trainer's plugin
                has not written it.
        """
        if "://" in str(path) and not str(path).startswith("file://"):
            raise UnsupportedError(
                f"A callback writes a checkpoint to {path}, which S3T cannot erase after a deletion request. Give it "
                "a local folder while units are trained."
            )
        target = os.path.abspath(str(path).removeprefix("file://"))
        self.record(Path(target))
        leave_out_earlier_steps(checkpoint, self.first_step)
        with _temporary_files_in(self.scratch):
            self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
            _wait(self.inner)
        if not os.path.lexists(target):
            raise UnsupportedError(
                f"{type(self.inner).__name__} returned before it had written {target}: it writes to another path, or "
                "later, in a thread or process of its own. A file written after its unit has ended could not be "
                "erased with it. Use a plugin that writes immediately, to the path that it is given. S3T waits for "
                "Lightning's AsyncCheckpointIO."
            )

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Passes on to the trainer's own plugin.

        Args:
            path: The checkpoint.
            args: Passed on.
            kwargs: Passed on.
        """
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Passes on to the trainer's own plugin.

        Args:
            path: The checkpoint.
        """
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Passes on to the trainer's own plugin."""
        self.inner.teardown()


@contextmanager
def recorded_checkpoints(
    trainer: pl.Trainer, record: Callable[[Path], None], scratch: Path, first_step: int
) -> Iterator[None]:
    """Reports the checkpoints that are written while the block runs.

    Each is reported before it is written, links to them (`save_last="link"`) when the block ends. Other files in the
    same folders may be another run's, so they are left alone.

    Args:
        trainer: The trainer.
        record: Called with each path.
        scratch: A folder for temporary files.
        first_step: The position of the loggers' step axis.
    """
    inner = trainer.strategy.checkpoint_io
    written: set[Path] = set()

    def note(path: Path) -> None:
        written.add(path)
        record(path)

    trainer.strategy.checkpoint_io = RecordingCheckpointIO(inner, note, scratch, first_step)
    try:
        yield
    finally:
        trainer.strategy.checkpoint_io = inner
        for folder in {path.parent for path in written}:
            for link in folder.iterdir() if folder.is_dir() else ():
                if link.is_symlink() and link.parent.joinpath(link.readlink()).absolute() in written:
                    record(link)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    # only for as long as a checkpoint is written: the folder's path may be too long for multiprocessing's sockets
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _wait(plugin: CheckpointIO | None) -> None:
    """Waits for the thread that a plugin, or one that it wraps, writes in."""
    while plugin is not None:
        if isinstance(plugin, AsyncCheckpointIO):
            plugin.teardown()
        plugin = getattr(plugin, "checkpoint_io", None)
