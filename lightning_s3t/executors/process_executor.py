"""What executors have in common that train each unit in a process of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.engine.lightning_internals import logged_step, set_logged_step
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.processes.messages import Trained
from lightning_s3t.executors.processes.recorded_logs import write_calls
from lightning_s3t.executors.processes.unit_processes import UnitProcesses
from lightning_s3t.executors.unit_store import UnitStore
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.randomness import seeded


class ProcessExecutor(ABC):
    """Trains the units of a plan, each in processes of its own that start from what the fit has found.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        training: Trains a unit.
        settings: How units are trained.

    Attributes:
        trained: The units that have been trained.

    Raises:
        UnsupportedError: Something cannot be sent to another process; named.
    """

    def __init__(self, trainer: pl.Trainer, data: TrainingData, training: UnitTraining, settings: UnitSettings) -> None:
        self._trainer = trainer
        self._data = data
        self._settings = settings
        self._first_step = logged_step(trainer)
        set_logged_step(trainer, 0)  # units count their own
        self.trained: list[UnitId] = []
        self._processes = UnitProcesses(trainer, data, training, settings)

    @abstractmethod
    def rehearse(self) -> dict[str, Any]:
        """Has processes run the fit up to its first batch, so that what is wrong shows before anything is changed.

        Returns:
            The trainer's settings that bear on what is learnt.

        Raises:
            Exception: What the rehearsal has raised.
            WorkerError: A process has died.
        """

    def run(self, units: UnitStore, fit_store: FitStore) -> None:
        """Builds every unit of the plan.

        Args:
            units: Begins and commits units in the store.
            fit_store: The store, and the plan of what to build.

        Raises:
            Exception: What a unit's training has raised; the units that are done stay.
            WorkerError: A process has died.
        """
        with seeded():
            try:
                while not self._build_all(units, fit_store):
                    fit_store.replan()
                self._processes.say_what_was_kept()
            except BaseException:
                self._processes.close()
                fit_store.clear_attempts()
                raise

    def close(self) -> None:
        """Ends all processes."""
        self._processes.close()
        set_logged_step(self._trainer, self._first_step)

    @abstractmethod
    def _build_all(self, units: UnitStore, fit_store: FitStore) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""

    def _note(self, unit: UnitId, outcome: Trained) -> None:
        """Takes note of a unit that is in the store, and writes its logs: rank 0 alone has loggers that keep them."""
        self.trained.append(unit)
        if self._trainer.is_global_zero:
            write_calls(outcome.calls, self._trainer.loggers, self._first_step)
        self._first_step += outcome.steps
