"""The units that a fit has to build: missing ones, and those whose data has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_s3t.core.units import Cell, reaches
from lightning_s3t.engine.training_data import SliceDigests, TrainingData
from lightning_s3t.errors import DataError
from lightning_s3t.plan import DataMode, Place, UnitId
from lightning_s3t.store import UnitRecord
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone

Digests = Mapping[Place, SliceDigests]


@dataclass(frozen=True)
class PlannedUnit:
    """A unit that a fit has to build.

    Attributes:
        unit: Its coordinates.
        key: The digest of all that may influence it.
        rows: Number of training rows.
        stale: Whether the store holds it with other data.
        forget_rows: The rows that an edit makes it forget; None to train it.
        same_subjects: Whether the subjects are the same, and only the contents of their rows have changed.
    """

    unit: UnitId
    key: str
    rows: int
    stale: bool
    forget_rows: tuple[int, ...] | None = None
    same_subjects: bool = False


@dataclass(frozen=True)
class FitPlan:
    """The plan of a fit.

    Attributes:
        build: The units to build, in order.
        present: Number of existing units.
        impossible: Units with an empty slice in their prefix.
        as_of: The number of the newest request when the data was chosen.
        due: The subjects to forget once the units exist: requests that waited for this fit.
        corrections: Similarly, the subjects on whose corrected data the units are trained.
        outdated: Units with rows that were corrected after this fit had loaded its data: the next fit builds them.
        newcomers: Number of people who are new to the store.
    """

    build: tuple[PlannedUnit, ...]
    present: int
    impossible: tuple[UnitId, ...]
    as_of: int
    due: tuple[Tombstone, ...] = ()
    corrections: tuple[Mark, ...] = ()
    outdated: tuple[UnitId, ...] = ()
    newcomers: int = 0

    @property
    def carries_out(self) -> bool:
        """Whether requests have waited for this fit."""
        return bool(self.due or self.corrections)

    @property
    def with_other_subjects(self) -> list[UnitId]:
        """The units that the store holds with other subjects."""
        return [planned.unit for planned in self.build if planned.stale and not planned.same_subjects]

    @property
    def with_other_rows(self) -> list[UnitId]:
        """The units that the store holds with other rows of the same subjects."""
        return [planned.unit for planned in self.build if planned.stale and planned.same_subjects]


def plan_fit(
    units: Iterable[UnitId],
    alive: Mapping[UnitId, UnitRecord],
    data: TrainingData,
    mode: DataMode,
    digests: Digests,
    settings: Mapping[str, Any],
    as_of: int,
    corrected: Collection[Cell] = (),
) -> FitPlan:
    """Compare the wanted units with the existing ones, like a build system.

    Args:
        units: All units of the plan, parents before children.
        alive: The units in the store.
        data: The training data.
        mode: "cumulative" or "disjoint".
        digests: `TrainingData.digests`.
        settings: Everything else that units depend on.
        as_of: The number of the newest request when forgotten subjects were left out of the data.
        corrected: The cells with rows that were corrected after they had been loaded: nothing is built from them.

    Raises:
        DataError: The store's units saw the same ids in another order.
    """
    root = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    empty = set(data.empty_places())
    keys: dict[UnitId, str] = {}
    build: list[PlannedUnit] = []
    impossible: list[UnitId] = []
    outdated: list[UnitId] = []
    present = 0
    for unit in units:
        places = {slice_: Place(unit.shard, slice_) for slice_ in unit.prefix}
        if empty.intersection(places.values()):
            impossible.append(unit)
            continue
        parent, name, trained = unit.parent, str(unit), unit.trained_slices(mode)
        seen = slice_digests([places[slice_] for slice_ in trained], digests)
        before = keys[parent] if parent is not None else root
        keys[unit] = key = _digest([before, name, *seen["ordered"], *seen.get("contents", ())])
        record = alive.get(unit)
        if record is not None and record.key == key:
            present += 1
            continue
        if corrected and reaches(corrected, unit.cells):
            outdated.append(unit)
            continue
        then = record.provenance.get("subject_digests", {}) if record is not None else {}
        if record is not None:
            _check_order(unit, seen, then)
        same = "contents" in seen and seen["ordered"] == then.get("ordered")
        build.append(PlannedUnit(unit, key, len(data.rows(unit, mode)), stale=record is not None, same_subjects=same))
    return FitPlan(tuple(build), present, tuple(impossible), as_of, outdated=tuple(outdated))


def slice_digests(places: Iterable[Place], digests: Digests) -> dict[str, list[str]]:
    """Return the digests of a unit's training ids, and of the contents of its rows, for its provenance.

    Args:
        places: The slices that it trains on.
        digests: `TrainingData.digests`.
    """
    slices = [digests[place] for place in places]
    contents = [digest.contents for digest in slices if digest.contents is not None]
    found = {"ordered": [digest.ordered for digest in slices], "sorted": [digest.sorted for digest in slices]}
    return {**found, "contents": contents} if contents else found


def _check_order(unit: UnitId, now: Mapping[str, list[str]], then: Mapping[str, list[str]]) -> None:
    if now["sorted"] == then.get("sorted") and now["ordered"] != then.get("ordered"):
        raise DataError(
            f"The train data set gives the same ids as when unit {unit} was trained, in another order. Expected the "
            "same rows in the same order at every load; otherwise no unit can be reproduced bit for bit. Sort the "
            "rows (sorted(paths), ORDER BY)."
        )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
