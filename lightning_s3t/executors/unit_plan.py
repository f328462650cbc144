"""Which units a fit has to build: those that are missing, and those whose data has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import DataError
from lightning_s3t.plan import DataMode, Place, UnitId
from lightning_s3t.store import UnitRecord
from lightning_s3t.store.ledger import Tombstone

Digests = Mapping[Place, tuple[str, str]]


@dataclass(frozen=True)
class PlannedUnit:
    """A unit that a fit has to build.

    Attributes:
        unit: Its coordinates.
        key: The digest of all that may influence it.
        rows: How many rows it trains on.
        stale: Whether the store holds it with other data.
        forget_rows: The rows that an edit makes it forget; None to train it.
    """

    unit: UnitId
    key: str
    rows: int
    stale: bool
    forget_rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class FitPlan:
    """What a fit has to do.

    Attributes:
        build: The units to build, in order.
        present: How many are there already.
        impossible: Units with an empty slice in their prefix.
        as_of: The number of the newest request when the data was chosen.
        due: Who is forgotten once the units are there: requests that have waited for this fit.
    """

    build: tuple[PlannedUnit, ...]
    present: int
    impossible: tuple[UnitId, ...]
    as_of: int
    due: tuple[Tombstone, ...] = ()


def plan_fit(
    units: Iterable[UnitId],
    alive: Mapping[UnitId, UnitRecord],
    data: TrainingData,
    mode: DataMode,
    digests: Digests,
    settings: Mapping[str, Any],
    as_of: int,
) -> FitPlan:
    """Compares what there should be with what there is, as a build system does.

    Args:
        units: All units of the plan, parents before children.
        alive: What the store holds.
        data: The training data.
        mode: "cumulative" or "disjoint".
        digests: `TrainingData.digests`.
        settings: Everything else that units depend on.
        as_of: The number of the newest request when forgotten subjects were left out of the data.

    Raises:
        DataError: The store's units saw the same ids in another order.
    """
    root = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    empty = set(data.empty_places())
    keys: dict[UnitId, str] = {}
    build: list[PlannedUnit] = []
    impossible: list[UnitId] = []
    present = 0
    for unit in units:
        places = [Place(unit.shard, slice_) for slice_ in unit.prefix]
        if empty.intersection(places):
            impossible.append(unit)
            continue
        parent = keys[unit.parent] if unit.parent is not None else root
        ordered = [digests[Place(unit.shard, slice_)][0] for slice_ in unit.trained_slices(mode)]
        keys[unit] = key = _digest([parent, str(unit), *ordered])
        record = alive.get(unit)
        if record is not None and record.key == key:
            present += 1
            continue
        if record is not None:
            _check_order(unit, record, digests, mode)
        build.append(PlannedUnit(unit, key, len(data.rows(unit, mode)), stale=record is not None))
    return FitPlan(tuple(build), present, tuple(impossible), as_of)


def slice_digests(unit: UnitId, mode: DataMode, digests: Digests) -> dict[str, list[str]]:
    """Returns the digests of the ids that a unit trains on, for its provenance.

    Args:
        unit: The unit.
        mode: "cumulative" or "disjoint".
        digests: `TrainingData.digests`.
    """
    pairs = [digests[Place(unit.shard, slice_)] for slice_ in unit.trained_slices(mode)]
    return {"ordered": [pair[0] for pair in pairs], "sorted": [pair[1] for pair in pairs]}


def _check_order(unit: UnitId, record: UnitRecord, digests: Digests, mode: DataMode) -> None:
    now, then = slice_digests(unit, mode, digests), record.provenance.get("subject_digests", {})
    if now["sorted"] == then.get("sorted") and now["ordered"] != then.get("ordered"):
        raise DataError(
            f"The train data set gives the same ids as when unit {unit} was trained, in another order. Expected the "
            "same rows in the same order at every load, or no unit could be trained again to the same bits. Sort the "
            "rows (sorted(paths), ORDER BY)."
        )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
