"""The units of a fit from the store's side: started, revoked, committed, whichever process trains them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitResult, UnitTask
from lightning_s3t.errors import DataError, RevokedError, S3TError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.ranks import on_rank_zero
from lightning_s3t.executors.unit_plan import PlannedUnit, slice_digests
from lightning_s3t.plan import Place, UnitId
from lightning_s3t.plan.stage_rules import newest_stages
from lightning_s3t.store import Attempt


@dataclass(frozen=True)
class _Begun:
    """A unit in training: its plan, its task, and its place in the store."""

    planned: PlannedUnit
    task: UnitTask
    attempt: Attempt


class UnitStore:
    """Begins and commits units.

    Rank 0 alone has the store. Every rank calls `begin`, `check`, `revoked`, `pass_over` and `commit` at the same time
    and learns the same of them, an error too.

    Args:
        trainer: The trainer.
        fit_store: The store, and the plan of units to build.
        data: The training data.
        settings: The settings of units.
    """

    def __init__(self, trainer: pl.Trainer, fit_store: FitStore, data: TrainingData, settings: UnitSettings) -> None:
        self._trainer = trainer
        self._fit_store = fit_store
        self._data = data
        self._settings = settings
        self._begun: dict[UnitId, _Begun] = {}  # empty on all ranks but 0

    def begin(self, planned: PlannedUnit) -> UnitTask | None:
        """Start a unit; return None if a request has reached its ancestors.

        Args:
            planned: The unit, whose parent is in the store.
        """
        return on_rank_zero(self._trainer, lambda: self._begin(planned))

    def note_file(self, unit: UnitId, path: Path) -> None:
        """Register a file for erasure before it is written; without effect on all ranks but 0.

        Args:
            unit: The unit that it goes with.
            path: The file.
        """
        if unit in self._begun:
            self._begun[unit].attempt.register_file(path)

    def check(self, unit: UnitId) -> None:
        """Check that no request has reached a unit that is being trained.

        Args:
            unit: The unit.

        Raises:
            RevokedError: One has.
        """
        on_rank_zero(self._trainer, lambda: self._check(unit))

    def revoked(self) -> dict[UnitId, str]:
        """Return the units that are being trained and that a request has reached, and which one."""
        return on_rank_zero(self._trainer, self._revoked)

    def abandon(self, unit: UnitId) -> None:
        """Abandon a unit, and erase its files; without effect on all ranks but 0.

        Args:
            unit: The unit.
        """
        if unit in self._begun:
            self._begun.pop(unit).attempt.abandon()

    def pass_over(self, unit: UnitId, error: BaseException) -> str | None:
        """Abandon a unit that cannot be trained on the remaining rows, like a unit with an empty slice.

        Otherwise anyone who can make requests could end every fit. A unit that no request has reached fails with its
        error: there it is the script's.

        Args:
            unit: The unit.
            error: The error of its training.

        Returns:
            Why, for people; None if it failed for another reason.
        """
        return on_rank_zero(self._trainer, lambda: self._pass_over(unit, error))

    def commit(self, unit: UnitId, result: UnitResult) -> None:
        """Add a unit to the store, completely or not at all.

        Args:
            unit: The unit.
            result: Its result.

        Raises:
            RevokedError: A request has reached it; `abandon` it.
        """
        on_rank_zero(self._trainer, lambda: self._commit(unit, result))

    def _begin(self, planned: PlannedUnit) -> UnitTask | None:
        store, building = self._fit_store.opened.store, self._fit_store.opened.building
        unit, settings = planned.unit, self._settings
        if planned.stale and not self._fit_store.replaces:
            building.drop([unit], self._fit_store.plan.as_of)
        stage = unit.stage if planned.forget_rows is not None else unit.stage - 1
        needed = newest_stages(stage, settings.slices, settings.groups)
        try:
            trained = {stage: store.load(unit.lineage[stage - 1]) for stage in needed}
            attempt = building.start_unit(unit, planned.key, self._fit_store.kept_as_of)
        except RevokedError:
            return None
        rows = self._data.rows(unit, settings.data)
        task = UnitTask(unit, rows, trained, self._fit_store.start, attempt.scratch, planned.forget_rows)
        self._begun[unit] = _Begun(planned, task, attempt)
        return task

    def _check(self, unit: UnitId) -> None:
        if unit in self._begun:
            self._begun[unit].attempt.check()

    def _revoked(self) -> dict[UnitId, str]:
        found = {}
        for unit in self._begun:
            try:
                self._check(unit)
            except RevokedError as error:
                found[unit] = str(error)
        return found

    def _pass_over(self, unit: UnitId, error: BaseException) -> str | None:
        has_shrunk = self._fit_store.opened.building.has_shrunk(unit)
        generation = self._data.partition.generation_of(unit.shard)
        if not _is_too_little(error) or not (has_shrunk or generation):
            return None
        begun = self._begun.pop(unit)
        begun.attempt.abandon()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self._fit_store.passed_over[unit] = reason
        whose = "deletions have left it" if has_shrunk else f"the people of generation {generation} have"
        return (
            f"S3T: Unit {unit} cannot be trained on the {len(begun.task.rows)} rows that {whose}, and is skipped, as "
            f"are the units that build on it ({reason}). Its shard serves the units before it; the next fit tries "
            "again."
        )

    def _commit(self, unit: UnitId, result: UnitResult) -> None:
        begun = self._begun[unit]
        places = [Place(unit.shard, slice_) for slice_ in unit.trained_slices(self._settings.data)]
        digests = slice_digests(places, self._fit_store.digests)
        who: dict[str, Any] = {
            "rows": len(begun.task.rows),
            "subjects": self._data.count_subjects(begun.task.rows),
            "subject_digests": dict(digests),
        }
        generation = self._data.partition.generation_of(unit.shard)
        if generation:
            who["generation"] = generation
        record = {**result.record, **who}
        if self._fit_store.plan.carries_out:
            self._fit_store.replace(begun.attempt, result.tensors, record, result.score)
        else:
            begun.attempt.commit(result.tensors, record, result.score)
        del self._begun[unit]
        self._fit_store.passed_over.pop(unit, None)


def _is_too_little(error: BaseException) -> bool:
    """Return whether an error is caused by too few rows: in a schedule, a BatchNorm, a check of Lightning's."""
    if isinstance(error, S3TError):
        return isinstance(error, DataError)
    return isinstance(error, (ValueError, ZeroDivisionError))
