"""Files that say how likely a request is: for each slice, for each shard and slice, or for each subject."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Partition

if TYPE_CHECKING:
    from lightning_s3t.plan.problem import Prior

EXPECTED = (
    "Expected JSON (a list with one number per slice, a list of such lists with one per shard, or an object with one "
    "number per subject), or CSV: a header `subject,prior` and one line per subject, or lines of numbers alone."
)


def read_prior(path: Path, partition: Partition) -> Prior:
    """Reads a prior.

    Numbers need not sum to 1: only their ratios count.

    Args:
        path: A JSON file, or a CSV file.
        partition: The partition of the subjects.

    Raises:
        ConfigurationError: The file cannot be read as one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else _read_csv(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The prior {path} cannot be read: {error}. {EXPECTED}") from error
    from lightning_s3t.plan import slice_prior

    try:
        if isinstance(found, Mapping):
            return slice_prior({subject: float(weight) for subject, weight in found.items()}, partition)
        return _normalised(found)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The prior {path} cannot be read as numbers: {error}. {EXPECTED}") from error


def _read_csv(text: str) -> dict[str, Any] | list[Any]:
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    if not rows:
        raise ValueError("it is empty")
    if rows[0][0].strip() == "subject":
        return {row[0]: row[1] for row in rows[1:]}
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    return rows[0] if len(rows) == 1 else rows


def _normalised(found: Any) -> Prior:
    import numpy as np

    numbers = np.asarray(found, dtype=np.float64)
    total = float(numbers.sum())
    # the planner's own check reports values that are negative or not finite
    return numbers / total if total > 0 and np.isfinite(total) else numbers
