"""KLoM."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import KLDivergenceOfMargins
from lightning_s3t.metrics.functional import kl_divergence_of_margins


def test_by_hand() -> None:
    """Two bins, counts (3, 1) and (1, 3) with one added to each: 4/6, 2/6 against 2/6, 4/6."""
    unlearned, retrained = tensor([[0.0, 0.1, 0.2, 1.0]]), tensor([[0.0, 0.8, 0.9, 1.0]])
    found = kl_divergence_of_margins(unlearned, retrained, num_bins=2)
    assert found["mean"].item() == pytest.approx(2 / 3 * math.log(2) + 1 / 3 * math.log(1 / 2), rel=1e-5)


@pytest.mark.parametrize("value", [1e3, torch.inf, -1e3])
def test_a_broken_model_is_not_perfect(value: float) -> None:
    """In the reference code margins that are all at the upper edge are lost, and the divergence is 0."""
    draw = torch.Generator().manual_seed(0)
    retrained = torch.randn(20, 100, generator=draw)
    found = kl_divergence_of_margins(torch.full((20, 100), value), retrained)
    assert found["mean"] > 1
    assert found["mean"] > 5 * found["null"]


def test_the_same_distribution_gives_about_the_null() -> None:
    draw = torch.Generator().manual_seed(0)
    found = kl_divergence_of_margins(torch.randn(50, 50, generator=draw), torch.randn(50, 100, generator=draw))
    assert 0 < found["mean"] < 1.5 * found["null"]


def test_models_that_all_answer_alike_do_not_diverge() -> None:
    assert kl_divergence_of_margins(torch.ones(3, 4), torch.ones(3, 4))["mean"] == 0


def test_the_order_of_models_does_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    unlearned, retrained = torch.randn(5, 30, generator=draw), torch.randn(5, 30, generator=draw)
    one = kl_divergence_of_margins(unlearned, retrained)
    two = kl_divergence_of_margins(unlearned.flip(1), retrained.flip(1))
    assert one["mean"] == two["mean"]
    assert one["percentile_95"] == two["percentile_95"]


def test_the_percentile_is_over_rows() -> None:
    metric = KLDivergenceOfMargins()
    draw = torch.Generator().manual_seed(0)
    metric.update(torch.randn(90, 40, generator=draw), torch.randn(90, 40, generator=draw))
    before = metric.compute()
    metric.update(9 + torch.randn(10, 40, generator=draw), torch.randn(10, 40, generator=draw))
    assert metric.compute()["percentile_95"] > 2 * before["percentile_95"]


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigurationError, match="`num_bins` to be a positive integer but got 0"):
        KLDivergenceOfMargins(num_bins=0)
    with pytest.raises(ConfigurationError, match="`smoothing` to be a positive number but got 0"):
        KLDivergenceOfMargins(smoothing=0)
    with pytest.raises(ConfigurationError, match="same number of rows but `unlearned` has 2, `retrained` has 3"):
        KLDivergenceOfMargins().update(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ConfigurationError, match="`unlearned` to hold no NaN"):
        KLDivergenceOfMargins().update(torch.full((2, 4), torch.nan), torch.zeros(2, 4))
