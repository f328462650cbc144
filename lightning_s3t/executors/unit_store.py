"""The units of a fit, from the store's side: begun, revoked, committed; by whichever process trains them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitResult, UnitTask
from lightning_s3t.errors import RevokedError
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
        return BegunUnit(planned, UnitTask(unit, rows, trained, self._fit_store.start, planned.forget_rows), attempt)

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
        record, due = {**result.record, **who}, self._fit_store.plan.due
        if due:
            self._fit_store.replace(begun.attempt, result.tensors, record, result.score, due)
        else:
            begun.attempt.commit(result.tensors, record, result.score)
