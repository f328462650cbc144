"""Relearn time and the anamnesis index."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import AnamnesisIndex, RelearnTime
from lightning_s3t.metrics.functional import anamnesis_index, relearn_time


def test_the_first_step_at_the_goal_counts() -> None:
    steps, reached = relearn_time(tensor([0.1, 0.5, 0.76, 0.3, 0.9]), original_accuracy=0.8)
    assert (steps, reached) == (2, True)


def test_a_goal_that_is_met_exactly_is_met() -> None:
    """0.95 as float32 is below 0.95."""
    assert relearn_time(tensor([0.0, 0.95]), original_accuracy=1.0) == (1, True)


def test_a_model_that_has_forgotten_nothing_needs_no_step() -> None:
    assert relearn_time(tensor([1.0, 1.0]), original_accuracy=1.0) == (0, True)


def test_runs_that_do_not_get_there_are_counted_and_said() -> None:
    metric = RelearnTime(original_accuracy=1.0)
    metric.update(tensor([0.0, 0.5, 1.0]))
    metric.update(tensor([0.0, 0.1, 0.2, 0.3, 0.4]))
    found = metric.compute()
    assert (found["steps"], found["censored"]) == (3, 0.5)


def test_the_index_is_a_ratio_of_means() -> None:
    metric = AnamnesisIndex(original_accuracy=1.0)
    metric.update(tensor([0.0, 1.0]), tensor([0.0, 0.0, 1.0]))
    metric.update(tensor([0.0, 0.0, 0.0, 1.0]), tensor([0.0, 0.0, 0.0, 0.0]))
    found = metric.compute()
    assert found["index"].item() == pytest.approx(2.01 / 2.51)
    assert (found["censored"], found["retrained_censored"]) == (0, 0.5)


def test_retrained_models_that_need_no_step_show_nothing() -> None:
    assert anamnesis_index(tensor([4.0]), tensor([0.0])).isnan()


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigurationError, match="`margin` to be a number in range"):
        RelearnTime(original_accuracy=1.0, margin=2.0)
    with pytest.raises(ConfigurationError, match="accuracy before the first step but got none"):
        RelearnTime(original_accuracy=1.0).update(torch.zeros(0))
    with pytest.raises(ConfigurationError, match="values from 0 to 1"):
        RelearnTime(original_accuracy=1.0).update(tensor([50.0]))
