"""Agreement of several processes that train together: only rank 0 reads and writes the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_s3t.errors import LeakageError
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.fingerprint import digest_tensors

T = TypeVar("T")


def on_rank_zero(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Runs `work` on rank 0 and gives every rank its result, or its error.

    An error raised on only one rank would leave the others waiting forever.

    Args:
        trainer: The trainer.
        work: The function to run; its result must be picklable if several processes train.

    Raises:
        Exception: The error of `work`, on every rank.
    """
    if trainer.world_size == 1:
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


def gather(trainer: pl.Trainer, mine: T) -> list[T]:
    """Return each rank's value, on every rank, in the order of ranks.

    Args:
        trainer: The trainer.
        mine: This rank's value; picklable if several processes train.
    """
    if trainer.world_size == 1:
        return [mine]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, mine)
    return found


def check_same_tensors(trainer: pl.Trainer, unit: UnitId, tensors: Mapping[str, Tensor]) -> None:
    """Checks that a unit has come out the same on every rank.

    Args:
        trainer: The trainer.
        unit: The unit.
        tensors: The tensors of this rank.

    Raises:
        LeakageError: The ranks hold different tensors.
    """
    if trainer.world_size > 1 and len(set(gather(trainer, digest_tensors(tensors)))) > 1:
        raise LeakageError(
            f"The processes hold different tensors after unit {unit}: their gradients were not synchronised. Expected "
            "the same bits on every rank. Let the strategy synchronise them (no torch.no_sync in the step)."
        )
