"""One unit's training: an ordinary fit of only this unit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.engine.checkpoint_files import recorded_checkpoints
from lightning_s3t.engine.feature_reading import FeatureReader, Send
from lightning_s3t.engine.lightning_internals import end_fit
from lightning_s3t.engine.preflight import check_every_optimizer, check_optimized, check_optimizers
from lightning_s3t.engine.run_record import RunRecord, score_of
from lightning_s3t.engine.step_rows import StepRows, named_records, records_in
from lightning_s3t.engine.trainer_settings import trainer_settings
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_edit import EditTarget, edit_unit
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.errors import DataError, LeakageError
from lightning_s3t.methods import EditingMethod, UnlearningMethod
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.floor import Floor
from lightning_s3t.tuning.guard import named_tensors
from lightning_s3t.tuning.randomness import seed_all
from lightning_s3t.tuning.stage_switch import StageSwitch, StageWatch
from lightning_s3t.tuning.stages import Stage


@dataclass(frozen=True)
class UnitTask:
    """A unit to be trained.

    Attributes:
        unit: The unit.
        rows: The rows that it trains on.
        trained: The tensors of its ancestors, by stage; for an edit, those of the unit itself.
        start: The head as it stands before any training.
        scratch: A folder for temporary files.
        forget_rows: The rows that an edit makes it forget; None to train it.
    """

    unit: UnitId
    rows: Sequence[int]
    trained: Mapping[int, dict[str, Tensor]]
    start: dict[str, Tensor]
    scratch: Path
    forget_rows: Sequence[int] | None = None


@dataclass(frozen=True)
class FeatureTask:
    """Rows whose features are read for a closed-form head.

    Attributes:
        rows: The rows.
        floor: The settings of the head's data.
        part: The layer whose input is read.
        start: The head as it stands before any training.
        stage: The stage of the unit that computes the features; 0 for the pretrained network.
        trained: The tensors of the units that make it up, by stage.
    """

    rows: Sequence[int]
    floor: Floor
    part: FloorPart
    start: dict[str, Tensor]
    stage: int = 0
    trained: Mapping[int, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitResult:
    """The result of training a unit.

    Attributes:
        tensors: Its tensors.
        record: Its provenance, but for who was in its rows.
        score: The metric that the script monitors, where higher is better; None without one.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]
    score: float | None


Fit = Callable[[pl.Trainer, "DataLoader[Any]"], None]


class UnitTraining:
    """Trains a unit in this process.

    Args:
        data: The training data.
        switch: Puts the stages in place.
        settings: The settings of units.
        method: The unlearning method.

    Attributes:
        unit: The unit that is being trained, or None.
        in_own_process: Whether this is a process of the unit's own.
        first_step: The position of the loggers' step axis when it starts.
        note_file: Called with each checkpoint before it is written.
        advance: Called after each batch.
        check_alive: Called before each batch; raises if the unit has been revoked.
    """

    def __init__(
        self,
        data: TrainingData,
        switch: StageSwitch,
        settings: UnitSettings,
        method: UnlearningMethod,
    ) -> None:
        self._data = data
        self._switch = switch
        self._settings = settings
        self._method = method
        self._task: UnitTask | None = None
        self._edit: dict[str, Any] | None = None  # the description of an edit
        self._records: dict[str, Tensor] = {}  # the records of its training, before and after the edit
        self._steps: StepRows | None = None
        self._stage: Stage | None = None
        self._run: _Run | None = None
        self._rehearsed: dict[str, Any] | None = None
        self._reading: Callable[[pl.Trainer], None] | None = None
        self.unit: UnitId | None = None
        self.in_own_process = False
        self.first_step = 0
        self.note_file: Callable[[Path], None] = _nothing
        self.advance: Callable[[pl.Trainer], None] = _nothing
        self.check_alive: Callable[[pl.Trainer], None] = _nothing

    @property
    def rehearsed(self) -> tuple[nn.Module, list[nn.Parameter]] | None:
        """The network and its trained part in the first stage while a fit of several shards is rehearsed, or None."""
        if self._rehearsed is None or self._stage is None or self._settings.shards < 2:
            return None
        return self._switch.builder.network, list(self._stage.trainable.values())

    def prepare(self) -> None:
        """Do time-consuming work once for all units."""
        self._data.find_generators()

    def rehearse(self, trainer: pl.Trainer, fit: Fit) -> dict[str, Any]:
        """Run a fit of the first stage up to its first batch, so that problems appear before anything is changed.

        Args:
            trainer: The trainer.
            fit: Runs a fit with a train dataloader.

        Returns:
            The trainer's settings that affect training.

        Raises:
            UnsupportedError: The optimizers cannot be those of a unit.
        """
        seed_all(self._settings.seed)
        self._rehearsed = {}
        self._stage = self._switch.enter(1, {}, self._settings.seed)
        fit(trainer, self._data.rehearsal_loader(trainer))
        return self._rehearsed

    def digest_rows(self) -> tuple[str, ...]:
        """Read every row once if the fit compares them; changes to the data set's state stay in this process."""
        return self._data.digest_rows(self._settings.seed) if self._settings.digest_rows else ()

    def train(self, trainer: pl.Trainer, task: UnitTask, fit: Fit) -> UnitResult:
        """Train a unit.

        Args:
            trainer: The trainer, in its state before the fit.
            task: The unit, with its data and ancestors.
            fit: Runs a fit with the unit's dataloader.

        Raises:
            LeakageError: It changed tensors that it does not own.
            DataError: It trained on no batch.
        """
        self.unit, self._task = task.unit, task
        try:
            with recorded_checkpoints(trainer, self.note_file, task.scratch, self.first_step):
                return self._train(trainer, task, fit)
        finally:
            self.unit = self._task = self._edit = self._stage = self._run = self._steps = None
            self._records = {}

    def read_features(self, trainer: pl.Trainer, task: FeatureTask, fit: Fit, send: Send) -> None:
        """Read the features of rows from the pretrained network or from a unit.

        Args:
            trainer: The trainer, in its state before the fit.
            task: The rows.
            fit: Runs a fit with a train dataloader.
            send: Called with the rows' features, in chunks.

        Raises:
            UnsupportedError: The module does not give its head one vector a row.
            DataError: A batch's targets were not found.
        """
        seed = self._settings.seed
        seed_all(seed)
        self._switch.builder.start = task.start
        self._switch.enter_trained(task.stage, task.trained)
        reader = FeatureReader(task.floor, task.part, self._switch.builder.layers.network, seed)

        def read(running: pl.Trainer) -> None:
            for kind, rows in reader.read(running, self._data, task.rows):
                send(kind, rows)

        self._reading = read
        try:
            fit(trainer, self._data.rehearsal_loader(trainer))
        finally:
            self._reading = None

    def on_fit_start(self, trainer: pl.Trainer) -> None:
        """In a rehearsal, record the state once the optimizers are configured."""
        if self._rehearsed is not None and self._stage is not None:
            module = trainer.lightning_module
            check_optimized(trainer, self._stage.trainable)
            check_optimizers(trainer, module)
            check_every_optimizer(trainer, module, self._switch.builder.layers)
            self._rehearsed = trainer_settings(trainer)

    def on_train_start(self, trainer: pl.Trainer) -> None:
        """Start monitoring a unit just before its first batch, after the preparation of the fit."""
        if self._rehearsed is not None:
            end_fit()
        if self._reading is not None:
            self._reading(trainer)
            end_fit()
        if self._stage is not None:
            watch = self._switch.watch(self._stage)
            check_optimized(trainer, self._stage.trainable)
            self._run = _Run(watch, _AveragedWeights(trainer, self._stage.owned_names()), RunRecord(trainer))
            if self._task is not None and self._task.forget_rows is not None:
                self._edit = self._edited(trainer, self._task, self._stage, self._task.forget_rows)
                end_fit()
            if self._steps is not None:
                self._steps.on_train_start()

    def on_train_batch_end(self, trainer: pl.Trainer, batch: int) -> None:
        """Record a batch, if the method records its training, and update the progress display."""
        if self._steps is not None:
            self._steps.on_train_batch_end(trainer, batch)
        self.advance(trainer)

    def seed(self) -> None:
        """Seed the global generators for the running unit: draws before its first batch must not matter."""
        if self.unit is not None:
            seed_all(self._settings.unit_seed(self.unit))

    def _train(self, trainer: pl.Trainer, task: UnitTask, fit: Fit) -> UnitResult:
        unit, rows = task.unit, task.rows
        self._switch.builder.start = task.start
        seed = self._settings.unit_seed(unit)
        seed_all(seed)
        self._data.seed_generators(seed)
        loader = self._data.unit_loader(rows, seed, trainer.world_size, trainer.global_rank)
        if len(loader) == 0:  # before a schedule fails over it
            raise self._no_batch(trainer, task, loader)
        self._stage = stage = self._switch.enter(unit.stage, task.trained, seed)
        recorder = self._method.recorder() if isinstance(self._method, EditingMethod) else None
        if task.forget_rows is not None:
            self._records = records_in(task.trained[unit.stage])
        elif recorder is not None:
            self._steps = StepRows(recorder, loader, stage.trainable)
        epochs = self._settings.max_epochs(trainer.max_epochs)
        if epochs is not None:
            trainer.fit_loop.max_epochs = epochs
        seed_all(seed)
        fit(trainer, loader)
        self._check_data(trainer, unit, loader)
        run = self._run
        if run is not None and self._edit is not None:
            run.watch.check_others(f"unit {unit}")
            tensors = {**stage.snapshot(), **named_records(self._records)}
            return UnitResult(tensors, self._describe(unit, stage, run.record.complete()), None)
        if run is None or trainer.global_step == 0:
            raise self._no_batch(trainer, task, loader)
        run.averaged.undo_rounding()
        run.watch.check(f"unit {unit}")
        tensors = stage.snapshot()
        if self._steps is not None:
            tensors |= self._steps.records(tensors)
        return UnitResult(tensors, self._describe(unit, stage, run.record.complete()), score_of(trainer))

    def _edited(self, trainer: pl.Trainer, task: UnitTask, stage: Stage, forget: Sequence[int]) -> dict[str, Any]:
        assert isinstance(self._method, EditingMethod)  # only editing methods have edit tasks
        self.seed()
        builder, seed = self._switch.builder, self._settings.unit_seed(task.unit)
        target = EditTarget(
            builder.network, stage.trainable, lambda: builder.untrained(stage.index, seed), seed, self._records
        )
        return edit_unit(trainer, self._method, target, self._data, task.rows, forget)

    def _no_batch(self, trainer: pl.Trainer, task: UnitTask, loader: DataLoader[Any]) -> DataError:
        return DataError(
            f"Unit {task.unit} trained on no batch: {len(task.rows)} rows, batch size {loader.batch_size}, "
            f"drop_last={loader.drop_last}, max_epochs={trainer.max_epochs}. Expected at least one step: use fewer "
            "shards or slices, a smaller batch, or drop_last=False."
        )

    def _check_data(self, trainer: pl.Trainer, unit: UnitId, loader: DataLoader[Any]) -> None:
        used: Any = trainer.train_dataloader
        if getattr(used, "dataset", None) is not loader.dataset:
            raise LeakageError(
                f"Unit {unit} was trained with another dataloader ({type(used).__name__}) than the one for its rows, "
                "so it may have seen any row. Something in the script replaces the trainer's dataloader during "
                "training. Remove it."
            )

    def _describe(self, unit: UnitId, stage: Stage, record: dict[str, Any]) -> dict[str, Any]:
        layers = self._switch.builder.layers
        return {
            **record,
            "metrics": {name: value for name, value in record["metrics"].items() if not name.startswith("s3t/")},
            "unit": str(unit),
            "shard": unit.shard,
            "prefix": list(unit.prefix),
            "stage": unit.stage,
            "parent": str(unit.parent) if unit.parent else None,
            "data": self._settings.data,
            "layers": list(layers.groups[self._switch.builder.group_of(unit.stage) - 1].modules),
            "head": list(layers.head),
            "parameters": list(stage.trainable),
            "isolation": self._settings.isolation,
            "seed": self._settings.seed,
            "unit_seed": self._settings.unit_seed(unit),
            **({"edit": self._edit} if self._edit is not None else {}),
        }


@dataclass(frozen=True)
class _Run:
    """A unit's training from its first batch on.

    Attributes:
        watch: Watches that it changes its own tensors alone.
        averaged: Undoes the effect of weight averages on other weights.
        record: Its provenance.
    """

    watch: StageWatch
    averaged: _AveragedWeights
    record: RunRecord


class _AveragedWeights:
    """Restores frozen weights that differ only by rounding after a weight average was copied into the module.

    An exponential average of one number, taken as d*a + (1-d)*a, may differ from it in the last bit. Larger differences
    are left for the guard to report.
    """

    def __init__(self, trainer: pl.Trainer, owned: Collection[str]) -> None:
        self._module = trainer.lightning_module
        self._before: dict[str, Tensor] = {}
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            tensors = named_tensors(self._module).items()
            self._before = {name: tensor.detach().clone() for name, tensor in tensors if name not in owned}

    @torch.no_grad()
    def undo_rounding(self) -> None:
        now = named_tensors(self._module) if self._before else {}
        for name, before in self._before.items():
            tensor = now[name]
            before = before.to(tensor.device)  # a fit leaves the module on the CPU
            if not torch.equal(tensor, before) and torch.allclose(tensor, before, rtol=1e-4, atol=0.0):
                tensor.copy_(before)


def _nothing(_: Any) -> None:
    pass
