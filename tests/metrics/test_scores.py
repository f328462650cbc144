"""What attacks compare, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional import (
    confidence_score,
    entropy_score,
    logit_score,
    loss_score,
    modified_entropy_score,
)


def test_modified_entropy_is_small_only_for_a_row_that_is_surely_right() -> None:
    """Both of (1 - p) log p for the label and p log(1 - p) for the other, worked out by hand."""
    logits = tensor([[0.999, 0.001], [0.999, 0.001]], dtype=torch.float64).log()
    right, wrong = (-modified_entropy_score(logits, tensor([0, 1]))).tolist()
    assert right == pytest.approx(-0.001 * math.log(0.999) - 0.001 * math.log(0.999))
    assert right == pytest.approx(2.001e-6, rel=1e-3)
    assert wrong == pytest.approx(-0.999 * math.log(0.001) - 0.999 * math.log(0.001))
    assert wrong == pytest.approx(13.802, rel=1e-4)


def test_modified_entropy_of_three_classes() -> None:
    logits = tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    expected = -(1 - 0.3) * math.log(0.3) - 0.5 * math.log(1 - 0.5) - 0.2 * math.log(1 - 0.2)
    assert -modified_entropy_score(logits, tensor([1])).item() == pytest.approx(expected)


def test_modified_entropy_takes_each_row_by_itself() -> None:
    """Published code edits the columns of all rows' labels in every row."""
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    target = tensor([0, 1, 2, 3, 0, 1, 2])
    together = modified_entropy_score(logits, target)
    alone = torch.cat([modified_entropy_score(logits[i : i + 1], target[i : i + 1]) for i in range(7)])
    assert torch.equal(together, alone)


def test_modified_entropy_of_certain_answers() -> None:
    certain = tensor([[1.0, 0.0, 0.0]]).log()
    assert modified_entropy_score(certain, tensor([0])).item() == 0
    assert modified_entropy_score(certain, tensor([1])).item() == -math.inf


def test_the_other_scores_by_hand() -> None:
    logits = tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert loss_score(logits, tensor([1])).item() == pytest.approx(math.log(0.2))
    assert confidence_score(logits).item() == pytest.approx(math.log(0.7))
    entropy = -0.7 * math.log(0.7) - 0.2 * math.log(0.2) - 0.1 * math.log(0.1)
    assert entropy_score(logits).item() == pytest.approx(-entropy)
    assert logit_score(logits, tensor([1])).item() == pytest.approx(math.log(0.2 / 0.8))


def test_scores_stay_apart_where_the_probability_rounds_to_one() -> None:
    logits = tensor([[20.0, 0.0], [30.0, 0.0]])
    assert logits.softmax(dim=1)[:, 0].tolist() == [1, 1]
    target = tensor([0, 0])
    for score in (
        loss_score(logits, target),
        confidence_score(logits),
        entropy_score(logits),
        modified_entropy_score(logits, target),
        logit_score(logits, target),
    ):
        assert score[0] < score[1]


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.floats(-50, 50), st.data())
def test_scores_do_not_depend_on_a_shift_of_the_logits(values: list[float], shift: float, data: st.DataObject) -> None:
    logits = tensor([values], dtype=torch.float64)
    target = tensor([data.draw(st.integers(0, len(values) - 1))])
    assert torch.allclose(loss_score(logits, target), logits.log_softmax(dim=1)[0, target])
    for score in (loss_score, modified_entropy_score, logit_score):
        assert torch.allclose(score(logits, target), score(logits + shift, target), atol=1e-9)
    for blind in (confidence_score, entropy_score):
        assert torch.allclose(blind(logits), blind(logits + shift), atol=1e-9)


@pytest.mark.parametrize(
    ("logits", "target", "said"),
    [
        (tensor([1.0, 2.0]), tensor([0]), "`logits` to have 2 dimension"),
        (tensor([[1.0]]), tensor([0]), "at least two classes"),
        (tensor([[1, 2]]), tensor([0]), "tensor of floats but got torch.int64"),
        (tensor([[1.0, torch.nan]]), tensor([0]), "no NaN but got 1 of 2"),
        (tensor([[1.0, torch.inf]]), tensor([0]), "no positive infinity"),
        (tensor([[1.0, 2.0]]), tensor([2]), "classes from 0 to 1 but got 2 to 2"),
        (tensor([[1.0, 2.0]]), tensor([0, 1]), "1 integers, one for each row"),
    ],
)
def test_what_cannot_be_scored_is_refused(logits: torch.Tensor, target: torch.Tensor, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        loss_score(logits, target)
