"""RMIA."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import RobustMembershipInference
from lightning_s3t.metrics.functional.robust_membership import dominated, log_ratios


def test_offline_ratio_by_hand() -> None:
    """((1 + 0.3) * mean(0.2, 0.4) + 0.7) / 2 = 0.545."""
    found = log_ratios(tensor([0.9]), tensor([[0.2, 0.4]]), None, "offline", 0.3)
    assert found.exp().item() == pytest.approx(0.9 / 0.545)


def test_models_that_are_missing_do_not_count_as_zeros() -> None:
    """Public code adds zeros for out models that are not there."""
    references, trained_on = tensor([[0.8, 0.2, 0.4]]), tensor([[1, 0, 0]])
    offline = log_ratios(tensor([0.9]), references, trained_on, "offline", 1.0)
    assert offline.exp().item() == pytest.approx(0.9 / 0.3)
    online = log_ratios(tensor([0.9]), references, trained_on, "online", 0.3)
    assert online.exp().item() == pytest.approx(0.9 / ((0.8 + 0.3) / 2))


def test_the_score_is_the_share_of_the_population_that_is_dominated() -> None:
    population = tensor([0.5, 1.0, 2.0, 4.0]).log()
    rows = tensor([0.4, 1.0, 3.0, 9.0]).log()
    assert dominated(rows, population, 1.0).tolist() == [0, 0.5, 0.75, 1]
    assert dominated(rows, population, 2.5).tolist() == [0, 0, 0.5, 0.75]


def test_it_finds_memory_and_nothing_where_there_is_none() -> None:
    draw = torch.Generator().manual_seed(0)

    def probabilities(rows: int, memory: float) -> tuple[torch.Tensor, torch.Tensor]:
        difficulty = torch.randn(rows, 1, generator=draw)
        noise = 0.3 * torch.randn(rows, 3, generator=draw)
        return (difficulty[:, 0] + noise[:, 0] + memory).sigmoid(), (difficulty + noise[:, 1:]).sigmoid()

    for memory, low, high in ((1.0, 0.9, 1.0), (0.0, 0.42, 0.58)):
        metric = RobustMembershipInference(max_fpr=0.1)
        metric.update(*probabilities(300, memory), is_member=True)
        metric.update(*probabilities(300, 0.0), is_member=False)
        metric.update(*probabilities(300, 0.0), is_member=None)
        assert low < metric.compute()["auc"] < high


def test_what_it_refuses() -> None:
    metric = RobustMembershipInference()
    metric.update(tensor([0.5]), tensor([[0.5]]), is_member=True)
    with pytest.raises(ConfigurationError, match="needs population rows but got none"):
        metric.compute()
    with pytest.raises(ConfigurationError, match="values from 0 to 1"):
        metric.update(tensor([1.5]), tensor([[0.5]]), is_member=True)
    with pytest.raises(ConfigurationError, match="was not trained on it"):
        metric.update(tensor([0.5]), tensor([[0.5]]), is_member=True, reference_is_member=tensor([[1]]))
    with pytest.raises(ConfigurationError, match="`offline_scale` to be a number in range"):
        RobustMembershipInference(offline_scale=2)
    with pytest.raises(ConfigurationError, match="`gamma` to be a positive number"):
        RobustMembershipInference(gamma=0)
