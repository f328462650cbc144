"""LiRA and U-LiRA."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import LikelihoodRatioAttack, UnlearningLikelihoodRatioAttack
from lightning_s3t.metrics.functional import (
    likelihood_ratio_scores,
    membership_inference,
    unlearning_likelihood_ratio_attack,
)

SHADOWS = tensor([[3.0, 5.0, 0.0, 2.0], [1.0, 1.5, -1.0, 1.0]], dtype=torch.float64)
TRAINED_ON = tensor([[1, 1, 0, 0], [1, 1, 0, 0]])


def _log_normal(x: float, mean: float, variance: float) -> float:
    return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2


def test_online_by_hand() -> None:
    """In: mean 4, variance 2; out: mean 1, variance 2; second row 1.25 and 0.125, 0 and 2."""
    found = likelihood_ratio_scores(tensor([3.5, 0.5]).double(), SHADOWS, TRAINED_ON, variance="row")
    assert found.tolist() == pytest.approx(
        [
            _log_normal(3.5, 4, 2) - _log_normal(3.5, 1, 2),
            _log_normal(0.5, 1.25, 0.125) - _log_normal(0.5, 0, 2),
        ]
    )


def test_pooled_by_hand() -> None:
    """The mean of the variances within rows, 1.0625 in and 2 out; the differences between rows are no noise."""
    found = likelihood_ratio_scores(tensor([3.5, 0.5]).double(), SHADOWS, TRAINED_ON)
    assert found.tolist() == pytest.approx(
        [
            _log_normal(3.5, 4, 1.0625) - _log_normal(3.5, 1, 2),
            _log_normal(0.5, 1.25, 1.0625) - _log_normal(0.5, 0, 2),
        ]
    )


def test_offline_needs_no_in_models() -> None:
    found = likelihood_ratio_scores(
        tensor([3.5, 0.5]).double(), SHADOWS, torch.zeros(2, 4), mode="offline", variance="row"
    )
    assert found.tolist() == pytest.approx([(3.5 - 2.5) / math.sqrt(13 / 3), (0.5 - 0.625) / math.sqrt(3.6875 / 3)])


def test_an_infinite_score_is_refused_and_not_taken_for_perfect_unlearning() -> None:
    """A probability that rounds to 1 has an infinite logit, and no normal distribution can be fitted to it."""
    apart, same = tensor([[torch.inf, 9.0, 8.0, 9.0]]), tensor([[1.0, 2.0, 1.5, 2.5]])
    attack = UnlearningLikelihoodRatioAttack()
    for compute in (unlearning_likelihood_ratio_attack, attack.update):
        with pytest.raises(ConfigurationError, match="`unlearned` to hold finite scores but got 1 infinite of 4"):
            compute(apart, same)
    assert not attack.unlearned
    endless = SHADOWS.masked_fill(SHADOWS == 5, torch.inf)
    for scores, shadows in ((tensor([torch.inf, 0.0]), SHADOWS), (tensor([1.0, 0.0]), endless)):
        with pytest.raises(ConfigurationError, match="scores` to hold finite scores"):
            likelihood_ratio_scores(scores, shadows, TRAINED_ON)


def test_scores_of_16_bits_are_compared_in_32() -> None:
    draw = torch.Generator().manual_seed(0)
    retrained, unlearned = (shift + 40 * torch.randn(9, 64, generator=draw) for shift in (-200.0, 200.0))
    found = unlearning_likelihood_ratio_attack(unlearned.half(), retrained.half(), num_bootstraps=10)
    assert found["auc"] == pytest.approx(
        float(unlearning_likelihood_ratio_attack(unlearned, retrained)["auc"]), abs=0.01
    )


def test_shadow_models_that_agree_to_the_last_bit_give_finite_scores() -> None:
    found = likelihood_ratio_scores(tensor([1.0]), tensor([[1.0, 1.0, 0.0, 0.0]]), tensor([[1, 1, 0, 0]]))
    assert found.isfinite().all()


def _population(rows: int, models: int, memory: float) -> tuple[torch.Tensor, ...]:
    """Rows of different difficulty, known better by models that were trained on them."""
    draw = torch.Generator().manual_seed(1)
    difficulty = 3 * torch.randn(rows, 1, generator=draw)
    trained_on = torch.rand(rows, models, generator=draw) < 0.5
    trained_on[:, :2], trained_on[:, 2:4] = True, False
    shadows = difficulty + memory * trained_on + torch.randn(rows, models, generator=draw)
    is_member = torch.rand(rows, generator=draw) < 0.5
    scores = difficulty[:, 0] + memory * is_member + torch.randn(rows, generator=draw)
    return scores, shadows, trained_on, is_member


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_it_knows_which_rows_are_hard(mode: str) -> None:
    """A threshold on the score itself sees difficulty first."""
    scores, shadows, trained_on, is_member = _population(800, 16, memory=2.0)
    metric = LikelihoodRatioAttack(mode=mode, max_fpr=0.1)
    metric.update(scores, shadows, trained_on, is_member)
    plain = membership_inference(scores, is_member, max_fpr=0.1)
    found = metric.compute()
    assert found["auc_lower"] > plain["auc_upper"]
    assert found["auc"] > 0.85


def test_without_memory_there_is_nothing_to_find() -> None:
    scores, shadows, trained_on, is_member = _population(800, 16, memory=0.0)
    metric = LikelihoodRatioAttack(max_fpr=0.1)
    metric.update(scores, shadows, trained_on, is_member)
    found = metric.compute()
    assert found["auc_lower"] < 0.5 < found["auc_upper"]


def test_online_refuses_rows_without_in_models() -> None:
    metric = LikelihoodRatioAttack()
    with pytest.raises(ConfigurationError, match=r'at least two "in" models .* but a row has 0'):
        metric.update(tensor([1.0]), tensor([[1.0, 2.0]]), tensor([[0, 0]]), True)
    assert not any(metric.metric_state.values())
    with pytest.raises(ConfigurationError, match=r"`mode` to be one of \('online', 'offline'\) but got half"):
        LikelihoodRatioAttack(mode="half")


def _unlearned(shift: float, rows: int = 40, models: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    difficulty = 3 * torch.randn(rows, 1, generator=draw)
    return (
        difficulty + shift + torch.randn(rows, models, generator=draw),
        difficulty + torch.randn(rows, models, generator=draw),
    )


def test_perfect_unlearning_gives_one_half() -> None:
    found = unlearning_likelihood_ratio_attack(*_unlearned(0.0), max_fpr=0.1)
    assert found["auc_lower"] < 0.5 < found["auc_upper"]
    assert found["tpr_at_fpr_0.1"] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_rows_are_judged_by_themselves_and_in_both_directions(shift: float) -> None:
    """Phi(sqrt 2) is what two normal distributions two deviations apart allow, however hard the rows."""
    found = unlearning_likelihood_ratio_attack(*_unlearned(shift), max_fpr=0.1)
    assert found["auc"] == pytest.approx(0.92, abs=0.02)
    assert found["auc_lower"] > 0.85
    assert found["tpr_at_fpr_0.1_lower"] <= found["tpr_at_fpr_0.1"] <= found["tpr_at_fpr_0.1_upper"]


def test_the_same_seed_gives_the_same_interval() -> None:
    tables = _unlearned(1.0, rows=10, models=16)
    assert unlearning_likelihood_ratio_attack(*tables) == unlearning_likelihood_ratio_attack(*tables)


def test_each_update_has_the_same_models() -> None:
    metric = UnlearningLikelihoodRatioAttack()
    metric.update(torch.randn(3, 8), torch.randn(3, 8))
    with pytest.raises(ConfigurationError, match=r"same models in each update, \[8, 8\], but got \[6, 8\]"):
        metric.update(torch.randn(3, 6), torch.randn(3, 8))
    with pytest.raises(ConfigurationError, match="at least 4 models"):
        UnlearningLikelihoodRatioAttack().update(torch.randn(3, 2), torch.randn(3, 8))
