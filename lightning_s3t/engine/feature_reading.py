"""Reading the features of rows for the floor: each row goes through the pretrained network separately."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_s3t.core.floor import FloorPart, Task
from lightning_s3t.engine.lightning_internals import training_step
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_edit import no_logs
from lightning_s3t.errors import DataError, UnsupportedError
from lightning_s3t.store.heads.feature_sums import LARGEST_TARGET, FeatureRows
from lightning_s3t.tuning.floor import Floor, Targets
from lightning_s3t.tuning.head_features import HeadFeatures
from lightning_s3t.tuning.randomness import seed_all
from lightning_s3t.tuning.ridge import round_features

Send = Callable[[Task, FeatureRows], None]
"""What each part of the rows is given to."""

_NAMES = ("labels", "label", "targets", "target", "y")
_CHUNK = 1024  # rows
_OTHERWISE = "Leave `floor` out, or choose a method without such a head."


class FeatureReader:
    """Reads rows through the module's own training step, and records the input of its head.

    Args:
        floor: The settings of the floor's data.
        part: The layers that are read.
        network: The path of the module's network.
        seed: Seed of random augmentations, the same for each row.
    """

    def __init__(self, floor: Floor, part: FloorPart, network: str, seed: int) -> None:
        self._floor = floor
        self._part = part
        self._network = network
        self._seed = seed

    def read(self, trainer: pl.Trainer, data: TrainingData, rows: Sequence[int]) -> Iterator[tuple[Task, FeatureRows]]:
        """Yield integer features and targets of rows, some at a time, in the order of the rows.

        Args:
            trainer: The trainer, in a fit, with the pretrained model on its device.
            data: The training data.
            rows: The rows.

        Raises:
            UnsupportedError: The module does not give its head one vector a row.
            DataError: A batch's targets were not found, or they are not those of the head's outputs.
        """
        module = trainer.lightning_module
        if not module.automatic_optimization:
            raise UnsupportedError(
                f"A closed-form head reads rows through {type(module).__name__}.training_step, which uses manual "
                f"optimization (automatic_optimization=False). {_OTHERWISE}"
            )
        layer = module.get_submodule(self._part.layer)
        module.eval()
        features = HeadFeatures(module, self._network, self._part)
        with no_logs(module), torch.no_grad(), _taking_features(layer, features) as taken:
            for start in range(0, len(rows), _CHUNK):
                found = [self._row(trainer, data, row, taken) for row in rows[start : start + _CHUNK]]
                tasks = {task for task, _, _ in found}
                if len(tasks) > 1:
                    raise DataError(
                        f"The targets fit several tasks: {sorted(tasks)}. Set `task` of Floor or ClosedForm."
                    )
                read, targets = torch.stack([f for _, f, _ in found]), torch.stack([t for _, _, t in found])
                yield tasks.pop(), FeatureRows(round_features(read, self._part.limit), targets)

    def _row(
        self, trainer: pl.Trainer, data: TrainingData, row: int, taken: list[Tensor]
    ) -> tuple[Task, Tensor, Tensor]:
        seed_all(self._seed)
        data.seed_generators(self._seed)
        batch = trainer.strategy.batch_to_device(next(iter(data.batches([[row]]))))
        targets = find_targets(batch, self._floor.targets)
        task = self._floor.task or task_of(targets, self._part.outputs)
        numbers = integer_targets(targets, task, self._part)
        taken.clear()
        training_step(trainer, batch)
        if len(taken) != 1 or taken[0].shape != (1, self._part.width):
            shapes = [tuple(tensor.shape) for tensor in taken]
            raise UnsupportedError(
                "This model cannot have a closed-form head: for one row, the training step gave "
                f"{self._part.layer} inputs of shape {shapes}. Expected one vector per row. {_OTHERWISE}"
            )
        # not float64: the bits of float32 are the same however the network computes the rest
        return task, taken[0][0].float().cpu(), numbers


def find_targets(batch: Any, rule: Targets | None) -> Tensor:
    """Return the targets of a batch.

    Args:
        batch: The batch.
        rule: `Floor.targets`.

    Raises:
        DataError: There are none.

    Example:
        >>> find_targets({"pixels": torch.zeros(1, 4), "labels": torch.tensor([2])}, None)
        tensor([2])
    """
    found: Any = None
    if callable(rule):
        found = rule(batch)
    elif rule is not None:
        try:
            found = batch[rule]
        except (LookupError, TypeError):
            found = None
    elif isinstance(batch, Mapping):
        found = next((batch[name] for name in _NAMES if name in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        found = batch[1]
    if isinstance(found, Tensor):
        return found
    where = f"at {rule!r}" if rule is not None and not callable(rule) else "that a closed-form head could learn from"
    raise DataError(
        f"A batch ({type(batch).__name__}) has no tensor of targets {where}. Expected one: name it with "
        "`targets` of Floor or ClosedForm: a key ('labels'), a position (1), or a callable that takes the batch."
    )


def task_of(targets: Tensor, outputs: int) -> Task:
    """Return the task from the type and the shape of one row's targets, never from their values.

    Args:
        targets: Of a batch of one row.
        outputs: The number of the head's outputs.

    Raises:
        DataError: They leave more than one.

    Example:
        >>> task_of(torch.tensor([7]), outputs=10)
        'multiclass'
    """
    whole, count = not targets.is_floating_point(), targets.numel()
    if whole and count == 1 and outputs > 1:
        return "multiclass"
    if whole and count == outputs:
        return "binary" if outputs == 1 else "multilabel"
    choices = (
        (" to 'binary' or 'regression'" if outputs == 1 else " to 'multilabel' or 'regression'") if not whole else ""
    )
    raise DataError(
        f"The targets of a row are {targets.dtype} of shape {tuple(targets.shape)}, and the head has {outputs} "
        f"outputs, which does not determine the task. Set `task` of Floor or ClosedForm{choices}."
    )


def integer_targets(targets: Tensor, task: Task, part: FloorPart) -> Tensor:
    """Return the targets of one row as integers.

    Args:
        targets: Of a batch of one row.
        task: The task of the targets.
        part: The floor's settings.

    Returns:
        The class, or one number for each output; int32.

    Raises:
        DataError: They are not of the task.
    """
    flat = targets.detach().cpu().flatten()
    expected = 1 if task == "multiclass" else part.outputs
    if flat.numel() != expected:
        raise DataError(
            f"The targets of a row have {flat.numel()} numbers. Expected {expected}, for a {task} task and a head with "
            f"{part.outputs} outputs."
        )
    if not bool(flat.isfinite().all()):
        raise DataError(
            f"A target of a row is not a finite number: {flat.tolist()[:5]}. Expected a number for each output: leave "
            "rows without one out of the data."
        )
    if task == "regression":
        steps = (flat.double() / part.target_step).round()
        beyond = LARGEST_TARGET + 1  # which the sums refuse
        return steps.clamp(-beyond, beyond).to(torch.int32)
    numbers = flat.to(torch.int32)
    if task != "multiclass" and not bool(((flat == 0) | (flat == 1)).all()):
        raise DataError(f"The targets of a {task} task are 0 or 1 for each output, but got {flat.tolist()[:5]}.")
    return numbers[0] if task == "multiclass" else numbers


@contextmanager
def _taking_features(layer: nn.Module, features: HeadFeatures) -> Iterator[list[Tensor]]:
    taken: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> None:
        one_vector = args[0].dim() == 2 and len(args[0]) == 1
        taken.append((features.of(args[0]) if one_vector else args[0]).detach())

    handle = layer.register_forward_pre_hook(take)
    features.attach()
    try:
        yield taken
    finally:
        features.detach()
        handle.remove()
