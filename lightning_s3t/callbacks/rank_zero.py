"""Work that one process does for all: the store is written and read by rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import lightning.pytorch as pl

from lightning_s3t.callbacks.lightning_internals import is_distributed

T = TypeVar("T")


def on_rank_zero(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Runs `work` on rank 0 and gives every rank its result, or its error.

    An error that only one rank raised would leave the others waiting for ever.

    Args:
        trainer: The trainer.
        work: What to do; its result must be picklable where several processes train.

    Raises:
        Exception: What `work` raised, on every rank.
    """
    if not is_distributed(trainer):
        return work()
    outcome: tuple[T | None, Exception | None] = (None, None)
    if trainer.is_global_zero:
        try:
            outcome = (work(), None)
        except Exception as error:
            outcome = (None, error)
    result, raised = trainer.strategy.broadcast(outcome)
    if raised is not None:
        raise raised
    return result  # type: ignore[return-value]
