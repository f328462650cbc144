"""Accuracies, their gaps, and ToW."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import AccuracyGap, TugOfWar, UnlearningAccuracy
from lightning_s3t.metrics.functional import accuracy_gap, clopper_pearson


def test_rows_are_counted_and_not_batches() -> None:
    """A mean of batches' accuracies would be 0.75."""
    metric = UnlearningAccuracy()
    metric.update(tensor([0, 0, 0, 1]), tensor([0, 0, 1, 0]), "test")
    metric.update(tensor([1]), tensor([1]), "test")
    found = metric.compute()
    assert found["test"].item() == pytest.approx(3 / 5)
    assert (found["test_lower"].item(), found["test_upper"].item()) == pytest.approx(clopper_pearson(3, 5))
    assert found["forgotten"].isnan()


def test_scores_of_classes_are_predictions() -> None:
    metric = UnlearningAccuracy()
    metric.update(tensor([[0.1, 0.9], [0.8, 0.2]]), tensor([1, 1]), "retained")
    assert metric.compute()["retained"] == 0.5


def test_the_gap_has_a_sign_and_an_interval() -> None:
    """One retrained model: Bonett and Price's adjusted interval, worked out by hand for 3 and 1 of 20 rows."""
    target = torch.zeros(20, dtype=torch.long)
    preds, retrained = target.clone(), target.clone()
    preds[:1], retrained[1:4] = 1, 1
    found = accuracy_gap(preds, retrained, target)
    assert found["gap"].item() == pytest.approx(0.95 - 0.85)
    up, down = 4 / 22, 2 / 22
    reach = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 22)
    assert (found["gap_lower"].item(), found["gap_upper"].item()) == pytest.approx(
        (up - down - reach, up - down + reach), abs=1e-6
    )


def test_models_that_agree_on_all_rows_leave_doubt() -> None:
    found = accuracy_gap(tensor([0, 1]), tensor([0, 1]), tensor([0, 1]))
    assert found["gap"] == 0
    assert found["gap_lower"] < 0 < found["gap_upper"]


def test_retrained_models_that_differ_widen_the_interval() -> None:
    target = torch.zeros(100, dtype=torch.long)
    preds = target.clone()
    preds[:20] = 1
    alike, apart = target.repeat(2, 1), target.repeat(2, 1)
    alike[:, :20], apart[0, :40] = 1, 1
    narrow, wide = accuracy_gap(preds, alike, target), accuracy_gap(preds, apart, target)
    assert narrow["gap"] == wide["gap"] == 0
    assert wide["gap_upper"] > 2 * narrow["gap_upper"]


def test_the_average_gap_is_of_absolute_values() -> None:
    metric = AccuracyGap()
    right, wrong, target = tensor([0, 0]), tensor([1, 1]), tensor([0, 0])
    metric.update(right, wrong, target, "forgotten")
    metric.update(wrong, right, target, "retained")
    metric.update(right, right, target, "test")
    found = metric.compute()
    assert found["forgotten_gap"] == 1
    assert found["retained_gap"] == -1
    assert found["average_gap"].item() == pytest.approx(2 / 3)


def test_tug_of_war_by_hand() -> None:
    """Accuracies 1, 0.5, 0.5 against means of 0.5, 0.75, 0.5: 0.5 * 0.75 * 1."""
    metric = TugOfWar(num_retrained=2)
    target = tensor([0, 0])
    metric.update(tensor([0, 0]), tensor([[0, 1], [1, 0]]), target, "forgotten")
    metric.update(tensor([0, 1]), tensor([[0, 0], [1, 0]]), target, "retained")
    assert metric.compute().isnan()
    metric.update(tensor([0, 1]), tensor([[0, 1], [1, 0]]), target, "test")
    assert metric.compute() == 0.375


def test_equal_accuracies_win_the_tug_of_war_whatever_the_answers() -> None:
    metric = TugOfWar()
    for rows in ("forgotten", "retained", "test"):
        metric.update(tensor([0, 1, 1]), tensor([1, 0, 1]), tensor([0, 0, 0]), rows)
    assert metric.compute() == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((tensor([0]), tensor([0]), tensor([0]), "train"), r"`rows` to be one of \('forgotten', 'retained', 'test'\)"),
        ((tensor([0, 1]), tensor([0]), tensor([0, 1]), "test"), "`retrained_preds` to have the shape of `preds`"),
        ((tensor([0, 1]), tensor([0, 1]), tensor([0]), "test"), "for each of 1 rows but got shape"),
        ((tensor([0]), tensor([[0], [1]]), tensor([0]), "test"), r"of 1 retrained model\(s\) .* but got 2"),
        ((tensor([[torch.nan, 0.0]]), tensor([[0.0, 1.0]]), tensor([0]), "test"), "`preds` to hold no NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: tuple, said: str) -> None:
    metric = AccuracyGap()
    with pytest.raises(ConfigurationError, match=said):
        metric.update(*arguments)
    assert not metric.total.any()
