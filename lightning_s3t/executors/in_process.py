"""A fit whose units are trained one after another in the script's own process, with resets in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_s3t.engine.found_state.found_state import describe_changes, digest_found
from lightning_s3t.engine.lightning_internals import (
    TrainerReset,
    is_distributed,
    logged_step,
    prepare_fit_loop,
    run_fit_loop,
)
from lightning_s3t.engine.muted_lightning import quiet
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import LeakageError, RevokedError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.progress import UnitProgress
from lightning_s3t.executors.ranks import check_same_tensors
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_store import UnitStore
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.randomness import seeded
from lightning_s3t.tuning.stage_switch import StageSwitch


class InProcessExecutor:
    """Trains the units of a plan in this process: for several devices, and for debugging.

    State that units could leave behind is reset: loops, callbacks, optimizers, the module's attributes, and generators
    that are found. Such a list is never complete, so `IsolatedExecutor` is the rule.

    Args:
        callback: The S3T callback, which is not reset between units.
        training: Trains a unit.
        units: Begins and commits units in the store.
        fit_store: The store, and the plan of units to build.
        data: The training data.
        switch: Puts the stages in place.
        settings: The settings of units.

    Attributes:
        trained: The units that have been trained.
    """

    def __init__(
        self,
        callback: pl.Callback,
        training: UnitTraining,
        units: UnitStore,
        fit_store: FitStore,
        data: TrainingData,
        switch: StageSwitch,
        settings: UnitSettings,
    ) -> None:
        self._own = (callback,)
        self._training = training
        self._units = units
        self._fit_store = fit_store
        self._data = data
        self._switch = switch
        self._settings = settings
        self._found: dict[str, str] = {}
        self.trained: list[UnitId] = []

    def run(self, trainer: pl.Trainer) -> None:
        """Builds every unit of the plan; takes the place of the trainer's fit loop.

        A deletion request that arrives during the fit ends the unit that it reaches; the remaining units are planned
        again, without the forgotten subjects.

        Args:
            trainer: The trainer.

        Raises:
            LeakageError: A unit changed tensors that it does not own; it is discarded.
            DataError: A unit trained on no batch.
        """
        with self._prepared(trainer) as reset:
            self._training.note_file = self._note_file
            self._training.check_alive = self._check_alive
            reset.restore()
            self._switch.take_baseline()
            self._found = digest_found(trainer, self._data, self._own)
            while not self._build_all(trainer, reset):
                self._fit_store.replan()

    @contextmanager
    def _prepared(self, trainer: pl.Trainer) -> Iterator[TrainerReset]:
        """Prepare a trainer for building units inside the block, and restore it afterwards."""
        with ExitStack() as stack:
            stack.enter_context(seeded())
            stack.enter_context(quiet(trainer))
            reset = TrainerReset(trainer, keep=self._own)
            stack.callback(reset.finish)
            stack.callback(self._switch.leave)
            yield reset

    def _build_all(self, trainer: pl.Trainer, reset: TrainerReset) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""
        plan = self._fit_store.plan.build
        with closing(UnitProgress.of(trainer, plan, self._settings)) as progress:
            self._training.advance = progress.update
            for planned in plan:
                if not self._fit_store.has_time_for(planned):
                    break
                progress.start(planned.unit)
                start = time.monotonic()
                revoked = self._build(trainer, reset, planned)
                progress.finish_unit(planned.unit)
                if planned.unit in self.trained:
                    self._fit_store.budget.note(planned, time.monotonic() - start)
                if revoked is not None:
                    rank_zero_info(f"S3T: {revoked}")
                if self._fit_store.outdated():
                    return False
        return True

    def _build(self, trainer: pl.Trainer, reset: TrainerReset, planned: PlannedUnit) -> RevokedError | None:
        """Builds a unit; returns why it was broken off, if a deletion request has reached it."""
        reset.restore()
        unit, task = planned.unit, self._units.begin(planned)
        if task is None:
            return RevokedError(f"Unit {unit} was revoked while the fit ran.")
        revoked = None
        try:
            result = self._training.train(trainer, task, self._fit)
            check_same_tensors(trainer, unit, result.tensors)
            self._training.first_step = logged_step(trainer)
            reset.restore()
            self._switch.leave()
            self._check_found(trainer, unit)
            self._units.commit(unit, result)
            self.trained.append(unit)
        except RevokedError as error:
            self._units.abandon(unit)
            revoked = error
            self._training.first_step = logged_step(trainer)
        except Exception as error:
            if not self._pass_over(trainer, unit, error):
                self._units.abandon(unit)
                raise
            self._training.first_step = logged_step(trainer)
        except BaseException:
            self._units.abandon(unit)
            raise
        return revoked

    def _fit(self, trainer: pl.Trainer, loader: DataLoader[Any]) -> None:
        prepare_fit_loop(trainer, loader, self._training.first_step)
        run_fit_loop(trainer)

    def _pass_over(self, trainer: pl.Trainer, unit: UnitId, error: Exception) -> bool:
        """Abandon a unit if deletions have left it too few rows; not if other ranks may have continued."""
        if is_distributed(trainer):
            return False
        passed_over = self._units.pass_over(unit, error)
        if passed_over is None:
            return False
        rank_zero_warn(passed_over)
        return True

    def _note_file(self, path: Path) -> None:
        if self._training.unit is not None:
            self._units.note_file(self._training.unit, path)

    def _check_alive(self, trainer: pl.Trainer) -> None:
        """Looks whether the running unit has been revoked; every rank must ask at the same time."""
        if self._training.unit is not None:
            self._units.check(self._training.unit)

    def _check_found(self, trainer: pl.Trainer, unit: UnitId) -> None:
        changes = describe_changes(self._found, digest_found(trainer, self._data, self._own))
        if changes:
            raise LeakageError(
                f"Unit {unit} left state behind that would reach the units after it: {changes}. Units are trained in "
                "one process here (isolation='none', or a strategy that spawns or forks ranks), and this state is "
                "not reset between them. Keep it out of the module, the data module and the callbacks, or train on "
                "one device with isolation='forkserver'."
            )
