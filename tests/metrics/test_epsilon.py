"""The unlearning challenge's epsilon and forgetting quality."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import ForgettingQuality, UnlearningEpsilon
from lightning_s3t.metrics.functional import (
    forgetting_quality,
    unlearning_challenge_score,
    unlearning_epsilon,
    unlearning_epsilon_bound,
)


def test_by_hand() -> None:
    """Below 2.4 are 2 of 4 unlearned and none of the retrained: does not count. At 2.5: FNR 1/4 and FPR 1/4, log 3."""
    found = unlearning_epsilon(tensor([[1.0, 2.0, 3.0, 4.0]]), tensor([[2.5, 3.5, 4.5, 5.5]]), delta=0.0)
    assert found.item() == pytest.approx(math.log(3))


def test_separated_models_get_the_largest_epsilon_and_not_infinity() -> None:
    assert unlearning_epsilon(tensor([[1.0, 2.0]]), tensor([[3.0, 4.0]])).item() == 50


def test_constant_answers_are_told_from_varied_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    assert unlearning_epsilon(torch.zeros(1, 50), torch.randn(1, 50, generator=draw)).item() == 50


def test_models_that_all_answer_alike_cannot_be_told_apart() -> None:
    """No threshold counts. Published code takes the maximum of nothing, which is NaN."""
    assert unlearning_epsilon(torch.ones(2, 8), torch.ones(2, 8)).tolist() == [0, 0]


def test_two_sided_attacks_find_a_narrow_distribution_in_a_wide_one() -> None:
    draw = torch.Generator().manual_seed(0)
    narrow, wide = 0.1 * torch.randn(1, 200, generator=draw), torch.randn(1, 200, generator=draw)
    assert unlearning_epsilon(narrow, wide) > 2


def test_infinite_scores_are_scores() -> None:
    """A probability that rounds to 1 has an infinite logit."""
    found = unlearning_epsilon(tensor([[1.0, 2.0, torch.inf, torch.inf]]), tensor([[1.0, 2.0, torch.inf, -torch.inf]]))
    assert found.isfinite().all()


@given(st.data())
def test_every_epsilon_is_a_number(data: st.DataObject) -> None:
    values = st.sampled_from([-torch.inf, -1e9, -1.0, 0.0, 1e-30, 1.0, 2.0, 1e9, torch.inf])
    tables = [tensor([data.draw(st.lists(values, min_size=n, max_size=n))]) for n in (4, 6)]
    found = unlearning_epsilon(*tables)
    assert 0 <= found.item() <= 50
    assert torch.equal(found, unlearning_epsilon(*[table.flip(1) for table in tables]))


def test_the_median_is_not_moved_by_a_few_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    metric = UnlearningEpsilon()
    metric.update(torch.randn(20, 64, generator=draw), torch.randn(20, 64, generator=draw))
    before = metric.compute()
    metric.update(99 + torch.randn(3, 64, generator=draw), torch.randn(3, 64, generator=draw))
    after = metric.compute()
    assert after["median"] < 1.5 * before["median"]
    assert after["separated"].item() == pytest.approx(3 / 23)
    assert after["percentile_95"] == 50


def test_quality_by_hand() -> None:
    """Buckets of 0.5: 1, 1, 1/2, 1/8; with 64 models epsilons from ceil(log 63) = 5 on count as 0."""
    epsilons = tensor([0.0, 0.49, 0.5, 1.6, 5.0, 50.0])
    assert forgetting_quality(epsilons, num_models=64).item() == pytest.approx((1 + 1 + 0.5 + 0.125) / 6)


def test_perfect_unlearning_gets_less_than_a_fifth() -> None:
    """So the null is returned beside the quality."""
    draw = torch.Generator().manual_seed(0)
    metric = ForgettingQuality()
    metric.update(torch.randn(60, 128, generator=draw), torch.randn(60, 256, generator=draw))
    found = metric.compute()
    assert 0.1 < found["quality"] < 0.25
    assert found["quality"].item() == pytest.approx(found["null"].item(), abs=0.08)
    metric.reset()
    metric.update(1 + torch.randn(60, 128, generator=draw), torch.randn(60, 256, generator=draw))
    assert metric.compute()["quality"] < 0.05


def test_the_bound_of_perfect_unlearning_is_not_above_zero() -> None:
    """Unlike the estimate, which finds something in any models: at 95 %, at most one row in twenty."""
    draw = torch.Generator().manual_seed(0)
    same = torch.randn(200, 128, generator=draw), torch.randn(200, 128, generator=draw)
    assert (unlearning_epsilon_bound(*same) > 0).float().mean() < 0.05
    assert unlearning_epsilon(*same).min() > 0.3


def test_the_bound_does_not_exceed_the_true_epsilon() -> None:
    """Two-point distributions with rates 0.8 and 0.2: the true epsilon is log 4."""
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.bernoulli(torch.full((300, 400), rate), generator=draw) for rate in (0.8, 0.2))
    bounds = unlearning_epsilon_bound(one, two, delta=0.0)
    assert (bounds > math.log(4)).float().mean() < 0.05
    assert bounds.quantile(0.5) > 1


@pytest.mark.parametrize("shift", [9.0, -9.0])
def test_the_bound_of_separated_models_is_what_their_number_allows(shift: float) -> None:
    """Of 50 and 50 models none is mistaken: Clopper and Pearson's bound of both rates is 1 - 0.025 ** (1 / 50)."""
    draw = torch.Generator().manual_seed(0)
    found = unlearning_epsilon_bound(shift + torch.randn(3, 100, generator=draw), torch.randn(3, 100, generator=draw))
    rate = 1 - 0.025 ** (1 / 50)
    assert found.tolist() == pytest.approx([math.log((1 - rate) / rate)] * 3, rel=0.05)


def test_the_bound_of_models_that_all_answer_alike_is_zero() -> None:
    assert unlearning_epsilon_bound(torch.ones(2, 8), torch.ones(2, 8)).tolist() == [0, 0]


def test_the_score_multiplies_ratios_of_accuracies() -> None:
    score = unlearning_challenge_score(tensor(0.2), {"retained": 0.5, "test": 0.9}, {"retained": 1.0, "test": 0.9})
    assert score.item() == pytest.approx(0.1)


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigurationError, match="`unlearned` to hold no NaN but got 1 of 4"):
        UnlearningEpsilon().update(tensor([[1.0, torch.nan, 2.0, 3.0]]), torch.zeros(1, 4))
    with pytest.raises(ConfigurationError, match=r"`delta` to be a float in range \[0, 1\) but got 1"):
        UnlearningEpsilon(delta=1)
    metric = UnlearningEpsilon()
    metric.update(torch.randn(2, 8), torch.randn(2, 8))
    with pytest.raises(ConfigurationError, match="8 models in each update, as before, but got 6"):
        metric.update(torch.randn(2, 6), torch.randn(2, 8))
