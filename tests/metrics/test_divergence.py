"""JS divergence to a retrained model, and ZRF."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torchmetrics.functional.regression import jensen_shannon_divergence

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import RetrainDivergence, ZeroRetrainForgetting
from lightning_s3t.metrics.functional import retrain_divergence, zero_retrain_forgetting


def test_by_hand() -> None:
    p, q, m = (0.9, 0.1), (0.5, 0.5), (0.7, 0.3)
    expected = sum(a * math.log(a / c) + b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True)) / 2
    logits, others = tensor([p]).log(), tensor([q]).log()
    assert retrain_divergence(logits, others).item() == pytest.approx(expected, rel=1e-5)
    assert zero_retrain_forgetting(logits, others).item() == pytest.approx(1 - expected / math.log(2), rel=1e-5)


def test_opposite_answers_reach_the_bound() -> None:
    """Published code with swapped arguments goes far beyond."""
    logits, others = tensor([[1.0, 0.0]]).log(), tensor([[0.0, 1.0]]).log()
    assert retrain_divergence(logits, others).item() == pytest.approx(math.log(2))
    assert zero_retrain_forgetting(logits, others).item() == pytest.approx(0, abs=1e-6)


_rows = st.lists(st.tuples(*[st.floats(-30, 30)] * 4), min_size=1, max_size=5)


@given(_rows)
def test_it_is_torchmetrics_own_symmetric_and_bounded(rows: list[tuple[float, ...]]) -> None:
    logits = tensor(rows, dtype=torch.float64)
    others = logits.flip(1) * 0.7
    found = retrain_divergence(logits, others)
    assert torch.allclose(found, retrain_divergence(others, logits))
    assert 0 <= found <= math.log(2)
    theirs = jensen_shannon_divergence(logits.log_softmax(1), others.log_softmax(1), log_prob=True)
    # theirs has log 2 in single precision
    assert torch.allclose(found, theirs, atol=1e-7)


def test_the_same_answers_are_at_the_ideal() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert retrain_divergence(logits, logits + 7) == pytest.approx(0, abs=1e-6)
    metric = ZeroRetrainForgetting()
    metric.update(logits, logits)
    assert metric.compute().item() == pytest.approx(1)


def test_rows_of_all_batches_weigh_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, others = torch.randn(7, 3, generator=draw), torch.randn(7, 3, generator=draw)
    metric = RetrainDivergence()
    metric.update(logits[:5], others[:5])
    metric.update(logits[5:], others[5:])
    assert metric.compute().item() == pytest.approx(retrain_divergence(logits, others).item(), rel=1e-5)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"same shape but got \(1, 2\) and \(1, 3\)"):
        RetrainDivergence().update(torch.zeros(1, 2), torch.zeros(1, 3))
