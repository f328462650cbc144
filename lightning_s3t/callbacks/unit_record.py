"""What the store notes of a unit: how it was trained, on what, and what it owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_settings import UnitSettings
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.randomness import unit_seed


def describe_unit(
    unit: UnitId,
    run: Mapping[str, Any],
    data: TrainingData,
    digests: Mapping[str, Any],
    unfreezing: SliceUnfreezing,
    settings: UnitSettings,
) -> dict[str, Any]:
    """Returns a unit's provenance, JSON-ready.

    Args:
        unit: The unit, whose stage is in place.
        run: The record of its training.
        data: The training data.
        digests: Those of the ids that it was trained on.
        unfreezing: What has put the stage in place.
        settings: How units are trained.
    """
    builder, stage = unfreezing.builder, unfreezing.stage
    assert builder is not None
    assert stage is not None
    rows = data.rows(unit, settings.data)
    return {
        **run,
        "metrics": {name: value for name, value in run["metrics"].items() if not name.startswith("s3t/")},
        "unit": str(unit),
        "shard": unit.shard,
        "prefix": list(unit.prefix),
        "stage": unit.stage,
        "parent": str(unit.parent) if unit.parent else None,
        "data": settings.data,
        "rows": len(rows),
        "subjects": data.count_subjects(rows),
        "subject_digests": dict(digests),
        "layers": list(builder.layers.groups[unit.stage - 1].modules),
        "head": list(builder.layers.head),
        "parameters": list(stage.trainable),
        "seed": settings.seed,
        "unit_seed": unit_seed(settings.seed, unit),
    }
