"""A fit whose units are trained in separate processes, one or several at a time, on one or several devices."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_s3t.core.floor import Task
from lightning_s3t.engine.lightning_internals import is_distributed, logged_step, meeting_point, set_logged_step
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import FeatureTask, UnitResult, UnitTask
from lightning_s3t.errors import RevokedError, WorkerError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.processes.messages import (
    Advanced,
    Begin,
    Failed,
    FromUnit,
    Group,
    Lost,
    Read,
    ReadAll,
    Rehearse,
    Rehearsed,
    Trained,
    Writes,
)
from lightning_s3t.executors.processes.recorded_logs import write_calls
from lightning_s3t.executors.progress import UnitProgress
from lightning_s3t.executors.ranks import check_same_tensors, gather, on_rank_zero
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_queue import UnitQueue
from lightning_s3t.executors.unit_store import UnitStore
from lightning_s3t.plan import UnitId
from lightning_s3t.store.heads.feature_sums import FeatureRows
from lightning_s3t.tuning.randomness import seeded

_LOOK_UP = 0.1  # seconds after which the ranks compare how far they are, and look for requests


class Process(Protocol):
    """A unit's process.

    Attributes:
        what: Its activity, for messages: "unit 0/0-1 was trained".
    """

    what: str

    def note(self, path: Path) -> None:
        """Tell it that the file which it is about to write is on the list for erasure."""

    def close(self) -> None:
        """Stop listening to it."""


class Processes(Protocol):
    """Starts units' processes, here or elsewhere, with the state that a fit found, and listens to them."""

    @property
    def capacity(self) -> int:
        """Number of processes that may work at the same time."""

    def start(self, begin: Begin, what: str, another: bool = False) -> Any:
        """Start a job in a process, and say whether one more will be needed later."""

    def listen(self, processes: Sequence[Any], seconds: float) -> Iterator[tuple[Any, FromUnit]]:
        """Yield messages, but for warnings, which are shown; return soon after one. Raise a WorkerError for a death."""

    def learn(self, modules: tuple[str, ...]) -> None:
        """Import modules once for all units."""

    def kill(self, process: Any) -> None:
        """End a process, and wait until it has ended."""

    def say_what_was_kept(self) -> None:
        """Name data that callbacks kept in memory."""

    def close(self) -> None:
        """End all processes; when this returns, none can write any more."""


@dataclass
class _Job:
    """The job of a process on every rank: training a unit, or rehearsing the fit.

    Attributes:
        what: The same, for messages, and as its name on every rank.
        process: This rank's process.
        planned: The unit; None for the rehearsal and for reading rows.
        start: Its start, by the monotonic clock.
        outcome: The last message of the process; None before it.
    """

    what: str
    process: Process
    planned: PlannedUnit | None = None
    start: float = field(default_factory=time.monotonic)
    outcome: Trained | ReadAll | Rehearsed | Failed | Lost | None = None


@dataclass(frozen=True)
class _Standing:
    """The progress of a rank.

    Attributes:
        ended: The outcome of this rank's ended processes, by job: an error or None.
        died: That a process has died here, if one has.
        stop: Whether the rank was told to end.
    """

    ended: dict[str, Failed | None] = field(default_factory=dict)
    died: Failed | None = None
    stop: bool = False


@dataclass(frozen=True)
class _Build:
    """The building of one plan."""

    units: UnitStore
    fit_store: FitStore
    queue: UnitQueue
    progress: UnitProgress


class IsolatedExecutor:
    """Trains the units of a plan, each in a separate process that starts from the state which the fit found.

    State that a unit leaves behind cannot reach another: only its tensors, its record, its logger calls and the names
    of the files that it wrote leave its process. A unit begins when its parent is in the store. Each is trained as it
    would be alone, so the bits are the same however many are trained at a time.

    On several devices every rank has a process for each unit. These form a process group of the unit's own and run a
    whole fit with the script's strategy. Rank 0 alone has the store; all ranks go through the plan in step.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        settings: The settings of units.
        processes: Starts the processes; called at once.

    Attributes:
        trained: The units that have been trained.
    """

    def __init__(
        self, trainer: pl.Trainer, data: TrainingData, settings: UnitSettings, processes: Callable[[], Processes]
    ) -> None:
        self._trainer = trainer
        self._data = data
        self._settings = settings
        self._first_step = logged_step(trainer)
        set_logged_step(trainer, 0)  # units count their own
        self.trained: list[UnitId] = []
        self._jobs: dict[str, _Job] = {}  # the running jobs, in the same order on every rank
        self._several = is_distributed(trainer)
        self._name = on_rank_zero(trainer, lambda: f"s3t-{secrets.token_hex(8)}")
        self._groups = 0
        self._processes = processes()

    def rehearse(self) -> dict[str, Any]:
        """Let a process run the fit up to its first batch, so that problems appear before anything is changed.

        Returns:
            The trainer's settings that affect training.

        Raises:
            Exception: The error that the rehearsal raised.
            WorkerError: A process has died.
        """
        self._start(Rehearse(), "the fit was tried")
        while True:
            for job, message in self._listen():
                if isinstance(message, Failed):
                    raise message.exception(job.what)
                if isinstance(message, Rehearsed):
                    self._processes.learn(message.modules)
                    self._data.row_digests = message.row_digests
                    return message.settings
                if isinstance(message, Lost):
                    self._start(Rehearse(), job.what)

    def run(self, fit_store: FitStore) -> None:
        """Build every unit of the plan.

        Args:
            fit_store: The store, and the plan of units to build.

        Raises:
            Exception: The error that a unit's training raised; finished units stay.
            WorkerError: A process has died.
        """
        units = UnitStore(self._trainer, fit_store, self._data, self._settings)
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
        """End all processes."""
        self._processes.close()
        set_logged_step(self._trainer, self._first_step)

    def read_features(self, task: FeatureTask) -> Generator[tuple[Task, FeatureRows], None, None]:
        """Yield the features of rows for a closed-form head in chunks, which a separate process reads.

        On several devices, every rank's process reads its share of the rows, and every rank gets all of them. The
        process ends with the iterator.

        Args:
            task: The rows.

        Raises:
            Exception: The error that reading raised.
            WorkerError: The process has died.
        """
        what, ranks = "rows were read for a closed-form head", self._trainer.world_size
        self._start(replace(task, rows=_share(task.rows, self._trainer.global_rank, ranks)), what)
        waiting: list[list[Read]] = [[] for _ in range(ranks)]
        left, ended = len(task.rows), False
        try:
            while not ended:
                read = list[Read]()
                for job, message in self._listen():
                    if isinstance(message, Failed):
                        raise message.exception(job.what)
                    if isinstance(message, Lost):  # the head has some of the rows; the next fit reads the others
                        raise WorkerError(f"The fit has ended: {message.why}. The next fit continues.")
                    ended |= isinstance(message, ReadAll)
                    read += [message] if isinstance(message, Read) else []
                for queue, found in zip(waiting, gather(self._trainer, read), strict=True):
                    queue += found
                while all(waiting):
                    rows = _interleave([queue.pop(0) for queue in waiting], left)
                    left -= len(rows.rows)
                    yield rows.task, rows.rows
        finally:
            if what in self._jobs:
                self._end(self._jobs[what])

    def _build_all(self, units: UnitStore, fit_store: FitStore) -> bool:
        """Build the plan; return False if a deletion request arrived, so that a new plan is needed."""
        plan, outdated = fit_store.plan.build, False
        queue = UnitQueue(plan, fit_store.budget.cost)
        with closing(UnitProgress.of(self._trainer, plan, self._settings)) as progress:
            build = _Build(units, fit_store, queue, progress)
            while not queue.done:
                self._begin_units(build)
                for job, message in self._listen():
                    self._heed(build, job, message)
                if fit_store.outdated():
                    outdated = True
                    queue.halt()
                    for unit, why in units.revoked().items():
                        self._end(self._jobs[_what(unit)])
                        units.abandon(unit)
                        rank_zero_info(f"S3T: {why}")
                        progress.finish_unit(unit)
                        queue.give_up(unit)
        return not outdated

    def _begin_units(self, build: _Build) -> None:
        """Begin units while there are processes for them, and time."""
        queue, budget = build.queue, build.fit_store.budget
        while len(self._jobs) < (capacity := self._processes.capacity):
            # with a time limit, the plan's order: what does not fit is left for the next fit
            planned = queue.take(capacity if budget.seconds is None else 1)
            if planned is None:
                return
            unit = planned.unit
            if not build.fit_store.has_time_for(planned):
                queue.give_up(unit)
                queue.halt()
                return
            task = build.units.begin(planned)
            if task is None:
                rank_zero_info(f"S3T: Unit {unit} was revoked while the fit ran.")
                queue.give_up(unit)
                continue
            build.progress.start(unit)
            self._start(task, _what(unit), planned, another=queue.waiting)

    def _heed(self, build: _Build, job: _Job, message: FromUnit) -> None:
        assert job.planned is not None  # the rehearsal is over
        unit, units = job.planned.unit, build.units
        if isinstance(message, Advanced):
            build.progress.show(unit, message.share)
        elif isinstance(message, Writes):
            units.note_file(unit, Path(message.path))
            job.process.note(Path(message.path))
        elif isinstance(message, Lost):
            rank_zero_warn(f"S3T: {message.why}. The unit is trained again.")
            units.abandon(unit)
            build.progress.withdraw(unit)
            build.queue.put_back(unit)
        else:
            build.progress.finish_unit(unit)
            trained = self._finish(job.what, unit, message, units)
            if trained:
                build.fit_store.budget.note(job.planned, time.monotonic() - job.start)
            build.queue.end(unit, trained=trained)

    def _finish(self, what: str, unit: UnitId, outcome: Any, units: UnitStore) -> bool:
        """Commit a unit; return False if it was revoked, or cannot be trained on the remaining rows."""
        if isinstance(outcome, Failed):
            error = outcome.exception(what)
            passed_over = units.pass_over(unit, error)
            if passed_over is None:
                raise error
            rank_zero_warn(passed_over)
            return False
        check_same_tensors(self._trainer, unit, outcome.tensors)
        try:
            units.commit(unit, UnitResult(outcome.tensors, outcome.record, outcome.score))
        except RevokedError as error:
            units.abandon(unit)
            rank_zero_info(f"S3T: {error}")
            return False  # metrics of revoked units must not be shown
        self.trained.append(unit)
        if self._trainer.is_global_zero:  # only rank 0 has loggers that write
            write_calls(outcome.calls, self._trainer.loggers, self._first_step)
        self._first_step += outcome.steps
        return True

    def _start(
        self,
        task: UnitTask | FeatureTask | Rehearse,
        what: str,
        planned: PlannedUnit | None = None,
        another: bool = False,
    ) -> None:
        group = None
        if self._several:
            self._groups += 1
            group = Group(*meeting_point(), f"{self._name}-{self._groups}")
        self._jobs[what] = _Job(what, self._processes.start(Begin(task, group), what, another), planned)

    def _listen(self) -> Iterator[tuple[_Job, FromUnit]]:
        """Listen for a moment; yield messages of processes, and then the ends of jobs.

        A job has ended when its process has on every rank, or has failed on one. Jobs end in the same order on every
        rank. Earlier messages of this rank's processes are not for the other ranks.

        Raises:
            WorkerError: A process has died.
            SIGTERMException: A rank was told to end.
        """
        died = None
        running = [job.process for job in self._jobs.values() if job.outcome is None]
        try:
            for process, message in self._processes.listen(running, _LOOK_UP):
                job = self._jobs[process.what]
                if isinstance(message, (Trained, ReadAll, Rehearsed, Failed, Lost)):
                    job.outcome = message
                    process.close()
                else:
                    yield job, message
        except WorkerError as error:
            if not self._several:
                raise
            died = Failed.of(error)
        done = {job.what: job.outcome for job in self._jobs.values() if job.outcome is not None}
        ended = {what: outcome if isinstance(outcome, Failed) else None for what, outcome in done.items()}
        stop = bool(self._trainer.received_sigterm)  # type: ignore[attr-defined]
        standing = _Standing(ended, died, stop)
        standings = gather(self._trainer, standing) if self._several else [standing]
        if any(standing.stop for standing in standings):
            raise SIGTERMException
        deaths = [standing.died for standing in standings]
        for job in list(self._jobs.values()):
            said = [standing.ended[job.what] for standing in standings if job.what in standing.ended]
            failures = [failed for failed in (*deaths, *said) if failed is not None]
            if failures:  # the first error: the others fail because that rank has gone
                self._end(job)
                yield job, min(failures, key=lambda failed: failed.time)
            elif len(said) == len(standings):
                self._end(job)
                yield job, done[job.what]

    def _end(self, job: _Job) -> None:
        """End a job, and its process if it still runs."""
        del self._jobs[job.what]
        if job.outcome is None:
            self._processes.kill(job.process)


def _share(rows: Sequence[int], rank: int, ranks: int) -> Sequence[int]:
    """Return the rows that a rank reads: as many as every other, so that synchronised steps find each other."""
    most = -(-len(rows) // ranks)
    return [*rows[rank::ranks], *rows[:1]][:most]


def _interleave(parts: Sequence[Read], count: int) -> Read:
    """Return what the ranks have read in the order of the rows, without the ones that were read twice."""
    features = torch.stack([part.rows.features for part in parts], 1).flatten(0, 1)
    targets = torch.stack([part.rows.targets for part in parts], 1).flatten(0, 1)
    return Read(parts[0].task, FeatureRows(features[:count], targets[:count]))


def _what(unit: UnitId) -> str:
    return f"unit {unit} was trained"
