"""Putting answers together."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.aggregation import aggregate_logits, aggregate_outputs

A, B, C = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])


def test_the_three_rules_differ_as_they_should() -> None:
    assert torch.allclose(aggregate_logits([A, B, C], "mean_logits"), torch.tensor([[4 / 3, 2 / 3]]))
    expected = torch.stack([x.softmax(-1) for x in (A, B, C)]).mean(0)
    assert torch.allclose(aggregate_logits([A, B, C], "mean_probabilities").softmax(-1), expected)
    assert aggregate_logits([A, B, C], "vote").argmax() == 1


@pytest.mark.parametrize("how", ["mean_probabilities", "vote"])
def test_a_single_column_is_a_binary_answer(how: Any) -> None:
    logits = [torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[3.0]])]
    share = 2 / 3 if how == "vote" else torch.stack(logits).sigmoid().mean().item()
    assert aggregate_logits(logits, how).sigmoid().item() == pytest.approx(share, abs=1e-6)


def test_the_dtype_is_kept() -> None:
    half = [x.bfloat16() for x in (A, B)]
    assert all(
        aggregate_logits(half, how).dtype == torch.bfloat16 for how in ("mean_logits", "mean_probabilities", "vote")
    )  # type: ignore[arg-type]


def test_a_model_output_keeps_its_type_and_drops_what_is_one_models_own() -> None:
    outputs = [
        SequenceClassifierOutput(loss=torch.tensor(loss), logits=logits, hidden_states=(A,))
        for loss, logits in ((1.0, A), (3.0, B))
    ]
    together = aggregate_outputs(outputs, "mean_logits")
    assert isinstance(together, SequenceClassifierOutput)
    assert torch.equal(together.logits, torch.tensor([[2.0, 0.5]]))
    assert together.loss == 2.0
    assert together.hidden_states is None


def test_tuples_and_dicts_are_put_together_part_by_part() -> None:
    Pair = namedtuple("Pair", "x y")
    assert aggregate_outputs([Pair(A, 1), Pair(B, 1)], "mean_logits").x.tolist() == [[2.0, 0.5]]
    assert aggregate_outputs([{"x": (A, [B])}] * 2, "mean_logits")["x"][1][0].tolist() == B.tolist()


@pytest.mark.parametrize(("output", "how"), [((A,), "vote"), (object(), "mean_logits")])
def test_answers_without_a_rule_are_refused(output: Any, how: Any) -> None:
    with pytest.raises(EnsembleError, match=r"which .* cannot combine"):
        aggregate_outputs([output, output], how)
