"""Extraction from language models."""

from __future__ import annotations

import pytest
from torch import tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics import ExtractionRate, ExtractionRouge
from lightning_s3t.metrics.functional import clopper_pearson, extraction_rate, extraction_rouge


def test_one_other_token_is_no_extraction() -> None:
    found = extraction_rate(tensor([[1, 2, 3], [1, 2, 4], [7, 8, 9]]), tensor([[1, 2, 3], [1, 2, 3], [7, 8, 9]]))
    assert found["extraction_rate"].item() == pytest.approx(2 / 3)
    ends = found["extraction_rate_lower"].item(), found["extraction_rate_upper"].item()
    assert ends == pytest.approx(clopper_pearson(2, 3))


def test_padding_does_not_count() -> None:
    metric = ExtractionRate(ignore_index=0)
    metric.update(tensor([[1, 2, 9]]), tensor([[1, 2, 0]]))
    assert metric.compute()["extraction_rate"] == 1


def test_rouge_by_hand() -> None:
    """The longest common subsequence of 'a c d' and 'a b c d e' has three words: recall 3/5, precision 1."""
    found = extraction_rouge(["a c d", "x"], ["a b c d e", "x"])
    assert found["recall"].item() == pytest.approx((3 / 5 + 1) / 2)
    assert found["fmeasure"].item() == pytest.approx((0.75 + 1) / 2)
    assert found["exact_match"] == 0.5


def test_an_empty_answer_repeats_nothing() -> None:
    metric = ExtractionRouge()
    metric.update([""], ["a b"])
    assert metric.compute()["recall"] == 0


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigurationError, match="at least one token in each row"):
        ExtractionRate(ignore_index=0).update(tensor([[1, 2]]), tensor([[0, 0]]))
    with pytest.raises(ConfigurationError, match=r"same shape `\(N, T\)` but got \(1, 2\) and \(1, 3\)"):
        ExtractionRate().update(tensor([[1, 2]]), tensor([[1, 2, 3]]))
    with pytest.raises(ConfigurationError, match=r"token ids but got torch\.float32"):
        ExtractionRate().update(tensor([[1.0]]), tensor([[1.0]]))
    with pytest.raises(ConfigurationError, match=r"the same number of strings but got a single string and 1 texts"):
        ExtractionRouge().update("a", ["a"])
