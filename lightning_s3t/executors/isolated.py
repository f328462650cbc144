"""A fit whose units are trained in processes of their own, one or several at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_s3t.engine.lightning_internals import logged_step, set_logged_step
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitResult, UnitTraining
from lightning_s3t.errors import RevokedError
from lightning_s3t.executors.fit_store import FitStore
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
from lightning_s3t.executors.processes.recorded_logs import write_calls
from lightning_s3t.executors.processes.unit_processes import UnitProcess, UnitProcesses
from lightning_s3t.executors.progress import UnitProgress
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_store import BegunUnit, UnitStore
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.randomness import seeded

_PATIENCE = 5.0  # seconds in which a unit's process ends by itself once what has forked it has died
_LOOK_UP = 0.1  # seconds after which it is looked for requests, and whether the fit was told to end


@dataclass
class RunningUnit:
    """A unit that a process trains.

    Attributes:
        begun: The unit, in the store.
        process: The process.
    """

    begun: BegunUnit
    process: UnitProcess

    @property
    def unit(self) -> UnitId:
        """Which unit."""
        return self.begun.planned.unit


class IsolatedExecutor:
    """Trains the units of a plan, each in a process of its own that starts from what the fit has found.

    Nothing that a unit leaves behind can reach another: only its tensors, its record, what it told the loggers and the
    names of the files that it wrote come out of its process. A unit begins when its parent is in the store. Each is
    trained as it would be alone, so the bits are the same however many are trained at a time.

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
        self._running: dict[int, RunningUnit] = {}
        self._first_step = logged_step(trainer)
        set_logged_step(trainer, 0)  # units count their own
        self.trained: list[UnitId] = []
        self._processes = UnitProcesses(trainer, data, training, settings)

    def rehearse(self) -> dict[str, Any]:
        """Has a process run the fit up to its first batch, so that what is wrong shows before anything is changed.

        Returns:
            The trainer's settings that bear on what is learnt.

        Raises:
            Exception: What the rehearsal has raised.
            WorkerError: The process has died.
        """
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
                self._wait_for_ends()
                fit_store.clear_attempts()
                raise

    def close(self) -> None:
        """Ends all processes."""
        self._processes.close()
        set_logged_step(self._trainer, self._first_step)

    def _build_all(self, units: UnitStore, fit_store: FitStore) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""
        plan = fit_store.plan.build
        schedule = Schedule(plan)
        outdated = False
        with closing(UnitProgress.of(self._trainer, plan, self._settings)) as progress:
            while not schedule.done:
                while len(self._running) < self._settings.parallel_units:
                    planned = schedule.take()
                    if planned is None:
                        break
                    self._begin(planned, units, schedule, progress)
                self._listen(units, schedule, progress)
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
        process = self._processes.start(Begin(begun.task), f"unit {planned.unit} was trained")
        self._running[process.number] = RunningUnit(begun, process)

    def _listen(self, units: UnitStore, schedule: Schedule, progress: UnitProgress) -> None:
        processes = [running.process for running in self._running.values()]
        for process, message in self._processes.listen(processes, _LOOK_UP):
            running = self._running[process.number]
            if isinstance(message, Failed):
                raise message.exception(process.what)
            if isinstance(message, Advanced):
                progress.show(running.unit, message.share)
            elif isinstance(message, Writes):
                running.begun.note_file(Path(message.path))
                process.tell(Noted())
            elif isinstance(message, Trained):
                self._commit(running, message, units, schedule)
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
        self.trained.append(running.unit)
        write_calls(message.calls, self._trainer.loggers, self._first_step)
        self._first_step += message.steps

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

    def _wait_for_ends(self) -> None:
        """Waits until no unit's process can write any more: what they have written is erased next."""
        channels = {running.process.channel for running in self._running.values()}
        deadline = time.monotonic() + _PATIENCE
        while channels and time.monotonic() < deadline:
            for channel in wait(list(channels), _LOOK_UP):
                try:
                    channel.recv_bytes()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    channels.discard(channel)  # type: ignore[arg-type]

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
        >>> schedule.width, schedule.take() is first, schedule.take()
        (1, True, None)
        >>> schedule.end(first.unit)
        >>> schedule.take() is second
        True
    """

    def __init__(self, build: Iterable[PlannedUnit]) -> None:
        self._waiting = {planned.unit: planned for planned in build}
        self._running: set[UnitId] = set()

    @property
    def width(self) -> int:
        """How many units can be trained at the same time at most: as many as nothing is built on."""
        parents = {unit.parent for unit in self._waiting}
        return sum(unit not in parents for unit in self._waiting)

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
        """Notes that a unit was revoked: what is built on it is not trained either.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)
        self._waiting = {other: planned for other, planned in self._waiting.items() if unit not in other.lineage}

    def halt(self) -> None:
        """Gives nothing more out."""
        self._waiting.clear()
