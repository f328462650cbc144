"""A fit whose units are trained in processes of their own, one or several at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitResult, UnitTraining
from lightning_s3t.errors import RevokedError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.process_executor import ProcessExecutor
from lightning_s3t.executors.processes.messages import (
    Advanced,
    Begin,
    Failed,
    Noted,
    Rehearse,
    Rehearsed,
    Trained,
    Writes,
)
from lightning_s3t.executors.processes.unit_processes import UnitProcess
from lightning_s3t.executors.progress import UnitProgress
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_store import BegunUnit, UnitStore
from lightning_s3t.plan import UnitId

_LOOK_UP = 0.1  # seconds after which it is looked for requests, and whether the fit was told to end


@dataclass
class RunningUnit:
    """A unit that a process trains.

    Attributes:
        begun: The unit, in the store.
        process: The process.
        start: When it began, by the monotonic clock.
    """

    begun: BegunUnit
    process: UnitProcess
    start: float

    @property
    def unit(self) -> UnitId:
        """Which unit."""
        return self.begun.planned.unit


class IsolatedExecutor(ProcessExecutor):
    """Trains the units of a plan, each in a process of its own that starts from what the fit has found.

    Nothing that a unit leaves behind can reach another: only its tensors, its record, what it told the loggers and the
    names of the files that it wrote come out of its process. A unit begins when its parent is in the store. Each is
    trained as it would be alone, so the bits are the same however many are trained at a time.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        training: Trains a unit.
        settings: How units are trained.

    Raises:
        UnsupportedError: Something cannot be sent to another process; named.
    """

    def __init__(self, trainer: pl.Trainer, data: TrainingData, training: UnitTraining, settings: UnitSettings) -> None:
        super().__init__(trainer, data, training, settings)
        self._running: dict[int, RunningUnit] = {}

    @override
    def rehearse(self) -> dict[str, Any]:
        with closing(self._processes.start(Begin(Rehearse()), "the fit was tried")) as process:
            while True:
                for _, message in self._processes.listen([process], _LOOK_UP):
                    if isinstance(message, Failed):
                        raise message.exception(process.what)
                    if isinstance(message, Rehearsed):
                        self._processes.learn(message.modules)
                        self._data.row_digests = message.row_digests
                        return message.settings
                self._check_signals()

    @override
    def _build_all(self, units: UnitStore, fit_store: FitStore) -> bool:
        plan = fit_store.plan.build
        schedule = Schedule(plan)
        outdated = False
        with closing(UnitProgress.of(self._trainer, plan, self._settings)) as progress:
            while not schedule.done:
                while len(self._running) < self._settings.parallel_units:
                    planned = schedule.take()
                    if planned is None:
                        break
                    if not fit_store.has_time_for(planned):
                        schedule.give_up(planned.unit)
                        schedule.halt()
                        break
                    self._begin(planned, units, schedule, progress)
                self._listen(units, fit_store, schedule, progress)
                if fit_store.outdated():
                    outdated = True
                    schedule.halt()
                    self._end_revoked(schedule, progress)
                self._check_signals()
        return not outdated

    def _begin(self, planned: PlannedUnit, units: UnitStore, schedule: Schedule, progress: UnitProgress) -> None:
        begun = units.begin(planned)
        if begun is None:
            rank_zero_info(f"S3T: Unit {planned.unit} was revoked while the fit ran.")
            schedule.give_up(planned.unit)
            return
        progress.start(planned.unit)
        what = f"unit {planned.unit} was trained"
        process = self._processes.start(Begin(begun.task), what, another=schedule.waiting)
        self._running[process.number] = RunningUnit(begun, process, time.monotonic())

    def _listen(self, units: UnitStore, fit_store: FitStore, schedule: Schedule, progress: UnitProgress) -> None:
        processes = [running.process for running in self._running.values()]
        for process, message in self._processes.listen(processes, _LOOK_UP):
            running = self._running[process.number]
            if isinstance(message, Failed):
                error = message.exception(process.what)
                passed_over = units.pass_over(running.begun, error)
                if passed_over is None:
                    raise error
                rank_zero_warn(passed_over)
                schedule.give_up(running.unit)
                progress.finish_unit(running.unit)
                self._forget(process)
            elif isinstance(message, Advanced):
                progress.show(running.unit, message.share)
            elif isinstance(message, Writes):
                running.begun.note_file(Path(message.path))
                process.tell(Noted())
            elif isinstance(message, Trained):
                self._commit(running, message, units, schedule)
                fit_store.budget.note(running.begun.planned, time.monotonic() - running.start)
                progress.finish_unit(running.unit)
                self._forget(process)

    def _commit(self, running: RunningUnit, message: Trained, units: UnitStore, schedule: Schedule) -> None:
        try:
            units.commit(running.begun, UnitResult(message.tensors, message.record, message.score))
        except RevokedError as error:
            rank_zero_info(f"S3T: {error}")
            schedule.give_up(running.unit)  # metrics of what was revoked are nobody's to see
            return
        schedule.end(running.unit)
        self._note(running.unit, message)

    def _end_revoked(self, schedule: Schedule, progress: UnitProgress) -> None:
        """Ends the units that a request has reached, in mid-training."""
        for running in list(self._running.values()):
            try:
                running.begun.attempt.check()
            except RevokedError as error:
                self._processes.kill(running.process)
                running.begun.attempt.abandon()
                rank_zero_info(f"S3T: {error}")
                schedule.give_up(running.unit)
                progress.finish_unit(running.unit)
                self._forget(running.process)

    def _check_signals(self) -> None:
        if self._trainer.received_sigterm:  # type: ignore[attr-defined]
            raise SIGTERMException

    def _forget(self, process: UnitProcess) -> None:
        del self._running[process.number]
        process.close()


class Schedule:
    """Gives units out in the plan's order, each when its parent has been trained.

    Args:
        build: The units to build, in the plan's order.

    Example:
        >>> first, second = (PlannedUnit(UnitId(0, prefix), "key", 1, False) for prefix in [(0,), (0, 1)])
        >>> schedule = Schedule([first, second])
        >>> schedule.take() is first, schedule.take()
        (True, None)
        >>> schedule.end(first.unit)
        >>> schedule.take() is second
        True
    """

    def __init__(self, build: Iterable[PlannedUnit]) -> None:
        self._waiting = {planned.unit: planned for planned in build}
        self._running: set[UnitId] = set()

    @property
    def waiting(self) -> bool:
        """Whether there is more to give out."""
        return bool(self._waiting)

    @property
    def done(self) -> bool:
        """Whether no unit waits or runs."""
        return not self._waiting and not self._running

    def take(self) -> PlannedUnit | None:
        """Returns the next unit to train; None while all that are left wait for their parents."""
        for unit, planned in self._waiting.items():
            if unit.parent not in self._waiting and unit.parent not in self._running:
                del self._waiting[unit]
                self._running.add(unit)
                return planned
        return None

    def end(self, unit: UnitId) -> None:
        """Notes that a unit has been trained.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)

    def give_up(self, unit: UnitId) -> None:
        """Notes that a unit was revoked or passed over: what is built on it is not trained either.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)
        self._waiting = {other: planned for other, planned in self._waiting.items() if unit not in other.lineage}

    def halt(self) -> None:
        """Gives nothing more out."""
        self._waiting.clear()
