"""Targets as a closed-form head learns from them: integers, whose sums are exact."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.engine.feature_reading import integer_targets
from lightning_s3t.errors import DataError

PART = FloorPart(layer="head", width=4, outputs=1, bits=8, target_step=0.5)


def test_numbers_are_counted_in_steps() -> None:
    assert integer_targets(torch.tensor([-1.2]), "regression", PART).tolist() == [-2]


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_a_missing_number_is_refused_and_does_not_become_the_smallest_integer(missing: float) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        integer_targets(torch.tensor([missing]), "regression", PART)
