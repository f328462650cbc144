"""One unit's edit: a method changes a trained model, in the place of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_s3t.engine.lightning_internals import training_step
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.methods import EditingMethod, EditSession
from lightning_s3t.methods.editing import Batches


def edit_unit(
    trainer: pl.Trainer,
    method: EditingMethod,
    parameters: Mapping[str, nn.Parameter],
    data: TrainingData,
    retain: Sequence[int],
    forget: Sequence[int],
) -> dict[str, Any]:
    """Has a method edit the model that is in place.

    Args:
        trainer: The trainer, in a fit, with the model on its device.
        method: The method.
        parameters: The parameters that it may change, by name.
        data: The training data.
        retain: The rows that stay.
        forget: The rows that are to be forgotten.

    Returns:
        What was done, for the unit's provenance.

    Raises:
        UnsupportedError: The module optimizes by hand, or its step returns no loss.
    """
    module = trainer.lightning_module
    if not module.automatic_optimization:
        raise UnsupportedError(
            f"{method.name} needs the loss of a batch, and {type(module).__name__} optimizes by hand "
            "(automatic_optimization=False). Return the loss from training_step, or use another method."
        )

    def batches_of(rows: Sequence[int]) -> Batches:
        return lambda size: (trainer.strategy.batch_to_device(batch) for batch in data.batches(rows, size))

    def loss(batch: Any) -> Tensor:
        returned = training_step(trainer, batch)
        found = returned.get("loss") if isinstance(returned, Mapping) else returned
        if not isinstance(found, Tensor):
            raise UnsupportedError(
                f"{method.name} needs the loss of a batch, and {type(module).__name__}.training_step returned "
                f"{type(found).__name__}. Return the loss for every batch, or use another method."
            )
        return found

    module.eval()
    with no_logs(module):
        report = method.edit(
            EditSession(module, parameters, batches_of(forget), batches_of(retain), len(forget), len(retain), loss)
        )
    return {"method": method.name, "forgotten_rows": len(forget), **report}


@contextmanager
def no_logs(module: pl.LightningModule) -> Iterator[None]:
    """Have a module log nothing while the block runs: outside of a training there are no steps and no epochs.

    Args:
        module: The module.
    """
    names = ("log", "log_dict")
    vars(module).update(dict.fromkeys(names, lambda *_, **__: None))
    try:
        yield
    finally:
        for name in names:
            vars(module).pop(name)
