"""The units of a fit, from the store's side: begun, revoked, committed; by whichever process trains them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitResult, UnitTask
from lightning_s3t.errors import DataError, RevokedError, S3TError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.unit_plan import PlannedUnit, slice_digests
from lightning_s3t.plan.stage_rules import newest_stages
from lightning_s3t.store import Attempt


@dataclass
class BegunUnit:
    """A unit that is being trained.

    Attributes:
        planned: The unit.
        task: What it is trained from.
        attempt: Its place in the store.
    """

    planned: PlannedUnit
    task: UnitTask
    attempt: Attempt

    def note_file(self, path: Path) -> None:
        """Puts a file that is about to be written on the list for erasure.

        Args:
            path: The file.
        """
        self.attempt.register_file(path)


class UnitStore:
    """Begins and commits units.

    Args:
        fit_store: The store, and the plan of what to build.
        data: The training data.
        settings: How units are trained.
    """

    def __init__(self, fit_store: FitStore, data: TrainingData, settings: UnitSettings) -> None:
        self._fit_store = fit_store
        self._data = data
        self._settings = settings

    def begin(self, planned: PlannedUnit) -> BegunUnit | None:
        """Begins a unit; None if a request has reached what it stands on.

        Args:
            planned: The unit, whose parent is in the store.
        """
        store, building = self._fit_store.opened.store, self._fit_store.opened.building
        unit, settings = planned.unit, self._settings
        if planned.stale and not self._fit_store.replaces:
            building.drop([unit])
        stage = unit.stage if planned.forget_rows is not None else unit.stage - 1
        needed = newest_stages(stage, settings.slices, settings.groups or settings.slices)
        try:
            trained = {stage: store.load(unit.lineage[stage - 1]) for stage in needed}
            attempt = building.start_unit(unit, planned.key, self._fit_store.plan.as_of)
        except RevokedError:
            return None
        rows = self._data.rows(unit, settings.data)
        task = UnitTask(unit, rows, trained, self._fit_store.start, attempt.scratch, planned.forget_rows)
        return BegunUnit(planned, task, attempt)

    def pass_over(self, begun: BegunUnit, error: BaseException) -> str | None:
        """Gives a unit up that cannot be trained on what deletions have left, as one with an empty slice.

        Whoever can make requests could else end every fit, and so could a few people who come later. A unit of the
        first generation that no request has reached fails with its error: there it is the script's.

        Args:
            begun: The unit.
            error: What its training has raised.

        Returns:
            Why, for people; None if it failed for another reason.
        """
        unit = begun.planned.unit
        has_shrunk = self._fit_store.opened.building.has_shrunk(unit)
        generation = self._data.partition.generation_of(unit.shard)
        if not _is_too_little(error) or not (has_shrunk or generation):
            return None
        begun.attempt.abandon()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self._fit_store.passed_over[unit] = reason
        whose = "deletions have left it" if has_shrunk else f"the people of generation {generation} have"
        return (
            f"S3T: Unit {unit} cannot be trained on the {len(begun.task.rows)} rows that {whose}, and is passed over "
            f"with what would be built on it ({reason}). Its shard serves what is before it; the next fit tries again."
        )

    def commit(self, begun: BegunUnit, result: UnitResult) -> None:
        """Makes a unit part of the store, whole or not at all.

        Args:
            begun: The unit.
            result: What has come of it.

        Raises:
            RevokedError: A request has reached it; everything that it wrote is erased.
        """
        digests = slice_digests(begun.planned.unit, self._settings.data, self._fit_store.digests)
        who: dict[str, Any] = {
            "rows": len(begun.task.rows),
            "subjects": self._data.count_subjects(begun.task.rows),
            "subject_digests": dict(digests),
        }
        generation = self._data.partition.generation_of(begun.planned.unit.shard)
        if generation:
            who["generation"] = generation
        record, due = {**result.record, **who}, self._fit_store.plan.due
        if due:
            self._fit_store.replace(begun.attempt, result.tensors, record, result.score, due)
        else:
            begun.attempt.commit(result.tensors, record, result.score)
        self._fit_store.passed_over.pop(begun.planned.unit, None)


def _is_too_little(error: BaseException) -> bool:
    """Says whether an error is one that too few rows raise: in a schedule, a BatchNorm, a check of Lightning's."""
    if isinstance(error, S3TError):
        return isinstance(error, DataError)
    return isinstance(error, (ValueError, ZeroDivisionError))
