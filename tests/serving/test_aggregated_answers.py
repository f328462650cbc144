"""Answers of several models in every form, against values worked out by hand."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)

from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.aggregation import RULES, Rule, aggregate_logits, aggregate_outputs


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_the_mean_of_logits() -> None:
    assert aggregate_logits([row(1, 2, 6), row(3, 2, -6)], "mean_logits").tolist() == [[2, 2, 0]]


def test_the_mean_of_probabilities() -> None:
    # softmax of (ln 3, 0) is (3/4, 1/4), of (0, 0) it is (1/2, 1/2): the mean is (5/8, 3/8)
    answer = aggregate_logits([row(3, 1).log(), row(1, 1).log()], "mean_probabilities")
    torch.testing.assert_close(answer.exp(), row(5 / 8, 3 / 8))


def test_the_shares_of_votes() -> None:
    answer = aggregate_logits([row(9, 0, 1), row(0, 5, 1), row(0, 2, 1), row(0, 3, 4)], "vote")
    torch.testing.assert_close(answer.softmax(-1), row(1 / 4, 1 / 2, 1 / 4))


def test_a_class_without_a_vote_is_finite_and_last() -> None:
    answer = aggregate_logits([row(9, 0, 1), row(0, 5, 1)], "vote")
    assert answer.isfinite().all()
    assert answer.argmin() == 2


def test_a_confident_minority_is_outvoted_but_wins_by_its_logits() -> None:
    answers = [row(30, 0), row(0, 1), row(0, 1)]
    assert aggregate_logits(answers, "vote").argmax() == 1
    assert aggregate_logits(answers, "mean_logits").argmax() == 0


def test_very_sure_answers_do_not_overflow() -> None:
    answer = aggregate_logits([row(1000, -1000), row(-1000, 1000)], "mean_probabilities")
    torch.testing.assert_close(answer.exp(), row(0.5, 0.5))


def test_binary_probabilities_of_a_single_column() -> None:
    # sigmoid(ln 3) is 3/4, sigmoid(0) is 1/2: the mean is 5/8
    answer = aggregate_logits([row(3).log(), row(0)], "mean_probabilities")
    torch.testing.assert_close(answer.sigmoid(), row(5 / 8))


@pytest.mark.parametrize("how", ["mean_probabilities", "vote"])
@pytest.mark.filterwarnings("ignore:.*single column")
def test_a_unanimous_binary_answer_is_finite(how: Any) -> None:
    assert aggregate_logits([row(1000), row(1000)], how).isfinite().all()


@pytest.mark.parametrize("how", ["mean_probabilities", "vote"])
def test_a_single_column_that_looks_like_a_regression_is_warned_of(how: Any) -> None:
    with pytest.warns(UserWarning, match="For a regression use aggregate='mean_logits'"):
        aggregate_logits([row(30), row(50)], how)


@pytest.mark.parametrize("how", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_shape_and_dtype_are_kept(how: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    answer = aggregate_logits([torch.randn(shape).to(dtype)] * 3, how)
    assert (answer.shape, answer.dtype) == (shape, dtype)


@pytest.mark.parametrize("how", RULES)
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 1000))
def test_equal_answers_stay_what_they_are(how: Any, models: int, classes: int, seed: int) -> None:
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
    answer = aggregate_logits([logits] * models, how)
    assert torch.equal(answer.argmax(-1), logits.argmax(-1))
    if how != "vote":
        torch.testing.assert_close(answer.softmax(-1), logits.softmax(-1))


@pytest.mark.parametrize("how", RULES)
@given(st.permutations(range(4)))
def test_the_order_of_the_models_does_not_matter(how: Any, order: list[int]) -> None:
    logits = list(torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(aggregate_logits([logits[model] for model in order], how), aggregate_logits(logits, how))


@pytest.mark.parametrize("how", RULES)
def test_a_model_output_with_logits_is_put_together_by_every_rule(how: Any) -> None:
    a, b = row(2, 0), row(0, 1)
    answer = aggregate_outputs([SequenceClassifierOutput(logits=a), SequenceClassifierOutput(logits=b)], how)
    assert torch.equal(answer.logits, aggregate_logits([a, b], how))
    assert answer.loss is None


def test_a_cache_is_left_out() -> None:
    outputs = [CausalLMOutputWithPast(logits=row(1, 2), past_key_values=(row(0),)) for _ in range(2)]
    assert aggregate_outputs(outputs, "mean_logits").past_key_values is None


def test_a_model_output_without_logits_keeps_its_type() -> None:
    outputs = [QuestionAnsweringModelOutput(start_logits=row(1, 3), end_logits=row(0, k)) for k in (0.0, 2.0)]
    answer = aggregate_outputs(outputs, "mean_logits")
    assert isinstance(answer, QuestionAnsweringModelOutput)
    assert answer.start_logits.tolist() == [[1, 3]]
    assert answer.end_logits.tolist() == [[0, 1]]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


FORMS: dict[str, Any] = {
    "tuple": lambda t: (t, t + 1),
    "list": lambda t: [t, t + 1],
    "named tuple": lambda t: Pair(t, t + 1),
    "dict": lambda t: {"x": t, "y": t + 1},
    "ordered dict": lambda t: OrderedDict(x=t, y=t + 1),
    "nested": lambda t: {"x": (t, [t + 1])},
    "with nothing in it": lambda t: (t, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_of_every_form_is_taken_part_by_part(form: str) -> None:
    make = FORMS[form]
    answer, expected = aggregate_outputs([make(row(1, 2)), make(row(3, 6))], "mean_logits"), make(row(2, 4))
    assert str(answer) == str(dict(expected) if isinstance(expected, dict) else expected)


@pytest.mark.parametrize("form", ["tuple", "list", "named tuple", "dict", "nested"])
@pytest.mark.parametrize("how", ["vote", "mean_probabilities"])
def test_rules_for_logits_are_refused_where_nothing_says_what_the_logits_are(how: Any, form: str) -> None:
    with pytest.raises(EnsembleError, match=rf"returned \w+, which '{how}' cannot combine"):
        aggregate_outputs([FORMS[form](row(1, 2))] * 2, how)


@pytest.mark.parametrize("how", RULES)
@pytest.mark.parametrize("answer", [object(), {1, 2}, lambda: None])
def test_what_holds_no_tensors_is_refused(answer: Any, how: Any) -> None:
    with pytest.raises(EnsembleError, match=r"Expected a tensor, an object with `\.logits`"):
        aggregate_outputs([answer, answer], how)


def test_whole_numbers_have_no_mean_and_are_refused() -> None:
    lengths = torch.tensor([3, 4])
    with pytest.raises(EnsembleError, match=r"different tensors of torch\.int64.*aggregate='single'"):
        aggregate_outputs([(row(1.0), lengths), (row(2.0), lengths + 1)], "mean_logits")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_whole_numbers_that_all_models_give_are_passed_on(dtype: torch.dtype) -> None:
    lengths = torch.tensor([3, 0]).to(dtype)
    answers = [{"prediction": row(value), "lengths": lengths.clone()} for value in (1.0, 3.0)]
    together = aggregate_outputs(answers, "mean_logits")
    assert together["prediction"].tolist() == [[2.0]]
    assert torch.equal(together["lengths"], lengths)


def test_answers_of_unequal_shape_are_refused() -> None:
    with pytest.raises(EnsembleError, match=r"different shapes.*aggregate='single'"):
        aggregate_outputs([row(1, 2), row(1, 2, 3)], "mean_logits")


def test_numbers_that_differ_from_model_to_model_are_not_passed_off_as_one_models() -> None:
    with pytest.raises(EnsembleError, match="float"):
        aggregate_outputs([(row(1), 0.5), (row(1), 0.7)], "mean_logits")


@pytest.mark.parametrize("how", RULES)
@pytest.mark.parametrize("classes", [1, 4])
def test_a_model_with_several_votes_counts_as_several_models(how: Rule, classes: int) -> None:
    one, two, three = torch.randn(3, 5, classes, generator=torch.Generator().manual_seed(0))
    answer = aggregate_logits([one, two, three], how, votes=[3, 1, 2])
    torch.testing.assert_close(answer, aggregate_logits([one, one, one, two, three, three], how))


def test_the_votes_of_a_dict_of_answers_count_in_each_part() -> None:
    answers = [{"a": row(4), "b": (row(8),)}, {"a": row(0), "b": (row(0),)}]
    found = aggregate_outputs(answers, "mean_logits", votes=[3, 1])
    assert (float(found["a"]), float(found["b"][0])) == (3.0, 6.0)
