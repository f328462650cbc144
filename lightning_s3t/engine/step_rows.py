"""The rows that each optimizer step sees, for methods that record their training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from lightning_s3t.errors import UnsupportedError
from lightning_s3t.methods import TrainingRecorder

PREFIX = "training_records:"
"""Prefix of the records' names in a unit's snapshot; module tensors never have a colon in their names."""


class StepRows:
    """Tells a recorder of each optimizer step, and of the rows in its batches.

    Args:
        recorder: The recorder.
        loader: The unit's dataloader; the draws of its sampler are recorded from now on.
        parameters: The parameters that are trained, by name.

    Raises:
        UnsupportedError: The dataloader does not have a sampler that can be recorded.
    """

    def __init__(
        self, recorder: TrainingRecorder, loader: DataLoader[Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        batches: Any = loader.batch_sampler
        self._recorder = recorder
        self._parameters = parameters
        self._size: int = batches.batch_size
        self._sampler = batches.sampler = _Noting(batches.sampler)
        self._waiting: list[int] = []  # rows of batches whose step is still pending
        self._steps = 0

    def on_train_start(self) -> None:
        """Begins, just before the first step."""
        self._recorder.start(self._parameters)

    def on_train_batch_end(self, trainer: pl.Trainer, batch: int) -> None:
        """Looks, after a batch, whether a step has been taken."""
        rows = self._sampler.drawn[batch * self._size : (batch + 1) * self._size]
        if not rows:
            raise UnsupportedError(
                "The method records which rows each step sees, but the sampler of the train dataloader was replaced, "
                "and the rows that the new one draws are unknown. Keep the sampler, or use another method."
            )
        self._waiting += rows
        if trainer.global_step != self._steps:
            self._recorder.step(self._waiting)
            self._steps, self._waiting = trainer.global_step, []

    def records(self, snapshot: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the records, by their names in the unit's snapshot.

        Args:
            snapshot: The unit's tensors.
        """
        return named_records(self._recorder.records({name: snapshot[name] for name in self._parameters}))


def named_records(records: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns records by the names that they have in a unit's snapshot.

    Args:
        records: The records by their own names.
    """
    return {f"{PREFIX}{name}": tensor for name, tensor in records.items()}


def records_in(snapshot: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the records in a unit's snapshot, by their own names.

    Args:
        snapshot: All that is in it.
    """
    return {name.removeprefix(PREFIX): tensor for name, tensor in snapshot.items() if name.startswith(PREFIX)}


class _Noting(Sampler[int]):
    """A sampler that records another sampler's draws in an epoch."""

    def __init__(self, sampler: Iterable[int]) -> None:
        self._sampler = sampler
        self.drawn: list[int] = []

    def __iter__(self) -> Iterator[int]:
        self.drawn = drawn = []
        for row in self._sampler:
            drawn.append(int(row))
            yield row

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_sampler":
            raise AttributeError(name)
        return getattr(self._sampler, name)  # `set_epoch`
