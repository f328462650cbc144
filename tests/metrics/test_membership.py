"""AUC, TPR at a low FPR, and their intervals."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import LossMembershipInference, MembershipInference
from lightning_s3t.metrics.functional import clopper_pearson, delong, membership_inference

# few values, so that there are many ties
_scores = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@given(_scores, _scores)
def test_the_area_is_that_of_sklearn(members: list[int], non_members: list[int]) -> None:
    scores = tensor(members + non_members, dtype=torch.float32)
    labels = tensor([1] * len(members) + [0] * len(non_members))
    found = membership_inference(scores, labels, max_fpr=1.0)
    assert found["auc"].item() == pytest.approx(roc_auc_score(labels, scores))
    assert 0 <= found["auc_lower"] <= found["auc"] <= found["auc_upper"] <= 1


@given(_scores, _scores, st.sampled_from([0.0, 0.05, 0.1, 0.29, 0.5, 1.0]))
def test_the_true_positive_rate_is_that_of_the_best_threshold(
    members: list[int], non_members: list[int], rate: float
) -> None:
    scores = tensor(members + non_members, dtype=torch.float32)
    labels = [1] * len(members) + [0] * len(non_members)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = membership_inference(scores, tensor(labels), max_fpr=rate)
    assert found[f"tpr_at_fpr_{rate}"].item() == pytest.approx(max(tpr[fpr <= rate + 1e-12]))


@given(_scores, _scores)
def test_swapping_members_mirrors_the_area(members: list[int], non_members: list[int]) -> None:
    one, two = tensor(members).float(), tensor(non_members).float()
    area, low, high = delong(one, two)
    mirrored, mirrored_low, mirrored_high = delong(two, one)
    assert (area, low, high) == pytest.approx((1 - mirrored, 1 - mirrored_high, 1 - mirrored_low))


def test_a_rate_is_meant_as_it_is_written() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    non_members = torch.arange(100.0)
    scores = torch.cat([tensor([70.5]), non_members])
    is_member = tensor([1] + [0] * 100)
    assert membership_inference(scores, is_member, max_fpr=0.29)["tpr_at_fpr_0.29"] == 1
    assert membership_inference(scores, is_member, max_fpr=0.28)["tpr_at_fpr_0.28"] == 0


def test_tied_scores_are_all_caught_or_none() -> None:
    scores = tensor([1.0, 1.0, 1.0, 0.0])
    found = membership_inference(scores, tensor([1, 1, 0, 0]), max_fpr=[0.0, 0.5])
    assert found["tpr_at_fpr_0.0"] == 0
    assert found["tpr_at_fpr_0.5"] == 1


def test_delong_by_hand() -> None:
    """Members beat 1, 1 and 2/3 of the non-members, these are beaten by 2/3, 1 and 1: variance 2 * (1/27) / 3."""
    area, low, high = delong(tensor([0.9, 0.8, 0.3]), tensor([0.7, 0.2, 0.1]))
    assert area == pytest.approx(8 / 9)
    error = math.sqrt(2 / 81) / (8 / 9 * 1 / 9)
    for end, sign in ((low, -1), (high, 1)):
        assert math.log(end / (1 - end)) == pytest.approx(math.log(8) + sign * 1.959964 * error, abs=1e-5)


def test_the_interval_covers_what_it_says() -> None:
    """Two normal distributions one deviation apart: the true area is Phi(1 / sqrt 2)."""
    draw = torch.Generator().manual_seed(0)
    true = 0.5 * (1 + math.erf(0.5))
    covered = 0
    for _ in range(400):
        _, low, high = delong(1 + torch.randn(40, generator=draw), torch.randn(60, generator=draw))
        covered += low <= true <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_separated_groups_leave_doubt() -> None:
    """DeLong's variance is 0 there. Five disjoint pairs, all won: Clopper and Pearson's bound."""
    area, low, high = delong(torch.arange(5) + 10.0, torch.arange(7).float())
    assert (area, high) == (1, 1)
    assert low == pytest.approx(clopper_pearson(5, 5)[0])
    area, low, high = delong(torch.ones(5), torch.ones(7))
    assert (area, low + high) == pytest.approx((0.5, 1))
    assert low < 0.3


def test_one_row_says_nothing_of_the_variance() -> None:
    assert delong(tensor([0.5]), tensor([0.0, 1.0, 0.2])) == (pytest.approx(2 / 3), 0, 1)


def test_infinite_scores_are_compared() -> None:
    found = membership_inference(tensor([torch.inf, 1.0, -torch.inf]), tensor([1, 0, 0]), max_fpr=0.5)
    assert found["auc"] == 1
    assert membership_inference(tensor([-torch.inf, 1.0]), tensor([1, 0]), max_fpr=1.0)["tpr_at_fpr_1.0"] == 1


def test_members_alone_give_nan_and_a_warning() -> None:
    metric = MembershipInference()
    metric.update(tensor([0.5, 0.7]), True)
    with pytest.warns(UserWarning, match="one of the two is empty"):
        found = metric.compute()
    assert found["auc"].isnan()
    assert found["tpr_at_fpr_0.01"].isnan()
    assert (found["auc_lower"], found["auc_upper"]) == (0, 1)


def test_a_rate_that_cannot_be_seen_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="With 10 non-members .* at least 100 are needed"):
        membership_inference(torch.rand(20), tensor([1] * 10 + [0] * 10))


def test_a_member_flag_holds_for_all_rows() -> None:
    logits, target = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), tensor([0, 1, 2, 0, 1, 2, 0, 1])
    by_flag, by_row = LossMembershipInference(max_fpr=0.5), LossMembershipInference(max_fpr=0.5)
    by_flag.update(logits[:4], target[:4], True)
    by_flag.update(logits[4:], target[4:], False)
    by_row.update(logits, target, tensor([1, 1, 1, 1, 0, 0, 0, 0]))
    assert by_flag.compute() == by_row.compute()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_fpr": 1.5}, "`max_fpr` to be a float in range"),
        ({"max_fpr": []}, "`max_fpr` to be a float in range"),
        ({"confidence_level": 1.0}, "`confidence_level` to be a float in range"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        MembershipInference(**arguments)


@pytest.mark.parametrize(
    ("scores", "is_member", "said"),
    [
        (tensor([[0.5]]), tensor([1]), r"`scores` to have 1 dimension\(s\) but got shape \(1, 1\)"),
        (tensor([0.5, torch.nan]), tensor([1, 0]), "`scores` to hold no NaN but got 1 of 2"),
        (tensor([1, 2]), tensor([1, 0]), "`scores` to be a tensor of floats"),
        (tensor([0.5]), tensor([1, 0]), "a value for each of 1 rows"),
        (tensor([0.5]), tensor([2]), "only 0 and 1"),
    ],
)
def test_what_is_no_attack_is_refused(scores: torch.Tensor, is_member: torch.Tensor, said: str) -> None:
    metric = MembershipInference()
    with pytest.raises(ConfigurationError, match=said):
        metric.update(scores, is_member)
    assert not any(metric.metric_state.values())
