"""One unit's edit: a method changes a trained model instead of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_s3t.engine.lightning_internals import training_step
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods import EditingMethod, EditRows, EditSession
from lightning_s3t.methods.editing import Weights
from lightning_s3t.tuning.randomness import derive_seed


@dataclass(frozen=True)
class EditTarget:
    """The model that is edited.

    Attributes:
        network: The part of the module whose call returns the prediction.
        parameters: The parameters that may be changed, by name.
        untrained: Gives the tensors that training has changed as they were before it.
        seed: The unit's seed.
        records: The records of its training, by name; records that the edit leaves here are stored with the edited
            model.
    """

    network: nn.Module
    parameters: Mapping[str, nn.Parameter]
    untrained: Callable[[], Weights]
    seed: int
    records: dict[str, Tensor]


def edit_unit(
    trainer: pl.Trainer,
    method: EditingMethod,
    target: EditTarget,
    data: TrainingData,
    retain: Sequence[int],
    forget: Sequence[int],
) -> dict[str, Any]:
    """Has a method edit the model that is in place.

    Args:
        trainer: The trainer, in a fit, with the model on its device.
        method: The method.
        target: The model.
        data: The training data.
        retain: The rows that stay.
        forget: The rows to be forgotten.

    Returns:
        A description of the edit, for the unit's provenance.

    Raises:
        UnsupportedError: The module optimizes by hand, or its step returns no loss.
        ConfigurationError: The edit has led to numbers that are not finite.
    """
    module = trainer.lightning_module
    if not module.automatic_optimization:
        raise UnsupportedError(
            f"{method.name} needs the loss of a batch, but {type(module).__name__} uses manual optimization "
            "(automatic_optimization=False). Return the loss from training_step, or use another method."
        )

    def rows_of(rows: Sequence[int], label: str) -> EditRows:
        def read(batches: Iterable[Sequence[int]]) -> Iterator[Any]:
            loader = data.batches([[rows[number] for number in batch] for batch in batches])
            return (trainer.strategy.batch_to_device(batch) for batch in loader)

        return EditRows(len(rows), read, derive_seed(target.seed, "edit", label))

    def loss(batch: Any) -> Tensor:
        returned = training_step(trainer, batch)
        found = returned.get("loss") if isinstance(returned, Mapping) else returned
        if not isinstance(found, Tensor):
            raise UnsupportedError(
                f"{method.name} needs the loss of a batch, but {type(module).__name__}.training_step returned "
                f"{type(found).__name__}. Return the loss for every batch, or use another method."
            )
        return found

    module.eval()
    session = EditSession(
        module,
        target.network,
        target.parameters,
        rows_of(forget, "forget"),
        rows_of(retain, "retain"),
        loss,
        target.untrained,
        target.seed,
        target.records,
        _places(forget, retain),
    )
    with no_logs(module):
        report = method.edit(session)
    _check_finite(method, target.parameters)
    return {"method": method.name, "arguments": _arguments(method), "forgotten_rows": len(forget), **report}


def _arguments(method: EditingMethod) -> dict[str, Any]:
    """Return a method's arguments, JSON-ready."""
    given: dict[str, Any] = {}
    if is_dataclass(method):
        given = {field.name: getattr(method, field.name) for field in fields(method)}
    plain = (str, int, type(None))
    return {
        name: value if isinstance(value, plain) or (isinstance(value, float) and isfinite(value)) else repr(value)
        for name, value in given.items()
    }


def _places(forget: Sequence[int], retain: Sequence[int]) -> list[int]:
    """Return the numbers of the rows to be forgotten among both, in the data set's order."""
    among = {row: number for number, row in enumerate(sorted([*forget, *retain]))}
    return [among[row] for row in forget]


def _check_finite(method: EditingMethod, parameters: Mapping[str, Tensor]) -> None:
    broken = [name for name, parameter in parameters.items() if not parameter.isfinite().all()]
    if broken:
        raise ConfigurationError(
            f"{method!r} produced values that are not finite in {', '.join(broken[:5])}, so its model is discarded "
            "and the request keeps waiting. Use smaller or fewer steps, or other arguments."
        )


@contextmanager
def no_logs(module: pl.LightningModule) -> Iterator[None]:
    """Suppress a module's logging while the block runs: outside training there are no steps or epochs.

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
