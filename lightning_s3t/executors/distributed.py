"""A fit on several devices: for every unit, each rank has a process of its own, and these form a process group."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_s3t.engine.lightning_internals import meeting_point
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitResult, UnitTask, UnitTraining
from lightning_s3t.errors import RevokedError, WorkerError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.process_executor import ProcessExecutor
from lightning_s3t.executors.processes.messages import (
    Advanced,
    Begin,
    Failed,
    FromUnit,
    Group,
    Noted,
    Rehearse,
    Rehearsed,
    Trained,
    Writes,
)
from lightning_s3t.executors.processes.unit_processes import UnitProcess
from lightning_s3t.executors.progress import UnitProgress
from lightning_s3t.executors.ranks import check_same_tensors, gather, on_rank_zero
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_store import BegunUnit, UnitStore

_LOOK_UP = 0.1  # seconds after which the ranks compare how far they are

M = TypeVar("M", Rehearsed, Trained)


@dataclass(frozen=True)
class Standing:
    """How far a rank is with a unit.

    Attributes:
        done: Whether its process has said its last.
        failed: What went wrong there.
        revoked: Why the unit is to be broken off; rank 0 alone knows.
        stop: Whether the rank was told to end.
    """

    done: bool
    failed: Failed | None = None
    revoked: str | None = None
    stop: bool = False


class DistributedExecutor(ProcessExecutor):
    """Trains the units of a plan on several devices, one unit after the other.

    The ranks go through the plan in step. For each unit every rank starts a process from what the fit has found; these
    join a fresh process group and run a whole fit with the script's own strategy. Rank 0 alone has the store.

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
        self._name = on_rank_zero(trainer, lambda: f"s3t-{secrets.token_hex(8)}")
        self._groups = 0
        self._begun: BegunUnit | None = None  # on rank 0

    @override
    def rehearse(self) -> dict[str, Any]:
        rehearsed = self._run_together(Rehearse(), "the fit was tried", Rehearsed)
        assert rehearsed is not None
        self._processes.learn(rehearsed.modules)
        self._data.row_digests = rehearsed.row_digests
        return rehearsed.settings

    @override
    def _build_all(self, units: UnitStore, fit_store: FitStore) -> bool:
        plan = fit_store.plan.build
        with closing(UnitProgress.of(self._trainer, plan, self._settings)) as progress:
            for planned in plan:
                if not fit_store.has_time_for(planned):
                    break
                progress.start(planned.unit)
                start = time.monotonic()
                revoked = self._build(planned, units, progress, another=planned is not plan[-1])
                progress.finish_unit(planned.unit)
                if revoked is None:
                    fit_store.budget.note(planned, time.monotonic() - start)
                if revoked is not None:
                    rank_zero_info(f"S3T: {revoked}")
                if fit_store.outdated():
                    return False
        return True

    def _build(self, planned: PlannedUnit, units: UnitStore, progress: UnitProgress, another: bool) -> str | None:
        """Builds a unit; returns why it was broken off, if a deletion request has reached it."""
        task = on_rank_zero(self._trainer, lambda: self._begin(planned, units))
        if task is None:
            return f"Unit {planned.unit} was revoked while the fit ran."
        try:
            trained = self._run_together(task, f"unit {planned.unit} was trained", Trained, progress, another)
        except Exception as error:
            failure = error
            passed_over = on_rank_zero(self._trainer, lambda: self._pass_over(failure, units))
            if passed_over is None:
                raise
            rank_zero_warn(passed_over)
            return f"Unit {planned.unit} was passed over."
        if trained is None:
            return f"Unit {planned.unit} was revoked while it was trained."
        check_same_tensors(self._trainer, planned.unit, trained.tensors)
        try:
            on_rank_zero(self._trainer, lambda: self._commit(trained, units))
        except RevokedError as error:
            return str(error)
        self._note(planned.unit, trained)
        return None

    def _begin(self, planned: PlannedUnit, units: UnitStore) -> UnitTask | None:
        self._begun = units.begin(planned)
        return self._begun.task if self._begun is not None else None

    def _pass_over(self, error: Exception, units: UnitStore) -> str | None:
        if self._begun is None:
            return None
        passed_over = units.pass_over(self._begun, error)
        if passed_over is not None:
            self._begun = None
        return passed_over

    def _commit(self, trained: Trained, units: UnitStore) -> None:
        assert self._begun is not None
        units.commit(self._begun, UnitResult(trained.tensors, trained.record, trained.score))
        self._begun = None

    def _run_together(
        self,
        task: UnitTask | Rehearse,
        what: str,
        kind: type[M],
        progress: UnitProgress | None = None,
        another: bool = False,
    ) -> M | None:
        """Runs a task on every rank; returns this rank's outcome, or None where a request has ended the task."""
        self._groups += 1
        group = Group(*meeting_point(), f"{self._name}-{self._groups}")
        outcome: M | None = None
        with closing(self._processes.start(Begin(task, group), what, another)) as process:
            while True:
                failed = None
                try:
                    for _, message in self._processes.listen([process] if outcome is None else [], _LOOK_UP):
                        if isinstance(message, Failed):
                            failed = message
                        elif isinstance(message, kind):
                            outcome = message
                            process.close()
                        else:
                            self._answer(process, message, task, progress)
                except WorkerError as error:
                    failed = failed or Failed.of(error)
                standings = gather(self._trainer, self._standing(outcome is not None, failed))
                failures = [standing.failed for standing in standings if standing.failed is not None]
                if failures:  # the first: that its rank has gone is what the others fail with
                    self._processes.kill(process)
                    raise min(failures, key=lambda failure: failure.time).exception(what)
                if any(standing.stop for standing in standings):
                    raise SIGTERMException
                if standings[0].revoked is not None:
                    self._processes.kill(process)
                    self._abandon()
                    return None
                if all(standing.done for standing in standings):
                    return outcome

    def _answer(
        self, process: UnitProcess, message: FromUnit, task: UnitTask | Rehearse, progress: UnitProgress | None
    ) -> None:
        if isinstance(message, Writes):
            if self._begun is not None:  # rank 0 writes checkpoints
                self._begun.note_file(Path(message.path))
            process.tell(Noted())
        elif isinstance(message, Advanced) and progress is not None and isinstance(task, UnitTask):
            progress.show(task.unit, message.share)

    def _standing(self, done: bool, failed: Failed | None) -> Standing:
        revoked = None
        try:
            if self._begun is not None:
                self._begun.attempt.check()
        except RevokedError as error:
            revoked = str(error)
        return Standing(done, failed, revoked, bool(self._trainer.received_sigterm))  # type: ignore[attr-defined]

    def _abandon(self) -> None:
        if self._begun is not None:
            self._begun.attempt.abandon()
            self._begun = None
