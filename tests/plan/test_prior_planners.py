"""The planners that take a prior: BMS, conditional sampling and `optimal`."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import bms, conditional, plan_sequences
from lightning_s3t.plan.planners.matching import FORBIDDEN, column_weights

NAMES = ["bms", "conditional", "optimal"]


@st.composite
def problems(draw: st.DrawFn, most: int = 5) -> tuple[int, int, list[float] | None]:
    slices = draw(st.integers(1, most))
    budget = draw(st.integers(1, min(math.factorial(slices), 30)))
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0]), min_size=slices, max_size=slices))
    if weights is None or sum(weights) == 0:
        return slices, budget, None
    return slices, budget, [weight / sum(weights) for weight in weights]


@settings(deadline=None, max_examples=60)
@given(problems(), st.sampled_from(NAMES), st.integers(0, 3))
def test_planners_give_as_many_different_orders_as_the_budget_and_always_the_same(
    problem: tuple[int, int, list[float] | None], planner: str, seed: int
) -> None:
    slices, budget, prior = problem
    sequences = plan_sequences(planner, slices, budget, seed, prior)
    assert len(set(sequences)) == len(sequences) == budget
    assert all(sorted(sequence) == list(range(slices)) for sequence in sequences)
    assert plan_sequences(planner, slices, budget, seed, prior) == sequences


@pytest.mark.parametrize("planner", NAMES)
@pytest.mark.parametrize("budget", [0, 7, -1, 2.0, True])
def test_budgets_that_no_planner_has_are_refused(planner: str, budget: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"the planner '{planner}' has 6 sequences of 3 slices"):
        plan_sequences(planner, 3, budget)


@pytest.mark.parametrize("planner", NAMES)
def test_every_order_there_is_can_be_planned(planner: str) -> None:
    assert set(plan_sequences(planner, 4, 24)) == set(itertools.permutations(range(4)))


@settings(deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5))
def test_every_column_of_bms_is_a_matching_of_maximum_weight(weights: list[float]) -> None:
    prior = np.array(weights) / sum(weights)
    slices = len(prior)
    sequences = sorted(bms(slices, slices, prior))  # by first slice: the rows of the matchings
    for length in range(1, slices):
        prefixes = [sequence[:length] for sequence in sequences]
        chosen = [sequence[length] for sequence in sequences]
        assert sorted(chosen) == list(range(slices))
        gains = column_weights(prefixes, prior)
        rows = np.arange(slices)
        best = max(gains[rows, list(matching)].sum() for matching in itertools.permutations(range(slices)))
        assert gains[rows, chosen].sum() == pytest.approx(best, abs=1e-6)


def test_the_weights_of_bms_are_those_of_the_published_score() -> None:
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    weights = column_weights([(3,), (2,)], prior)
    # n * (1 - prior of the first n slices)^100, and impossible where a slice is there already
    added = np.array([[2 * 0.5**100, 2 * 0.6**100, 2 * 0.7**100], [2 * 0.4**100, 2 * 0.5**100, 2 * 0.7**100]])
    np.testing.assert_allclose(weights[[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 3]], (added / added.max()).ravel())
    assert weights[0, 3] == weights[1, 2] == FORBIDDEN


def test_bms_gives_every_slice_every_position_once() -> None:
    for column in zip(*bms(7, 7, prior=np.arange(1, 8) / 28), strict=True):
        assert sorted(column) == list(range(7))


def test_below_a_full_round_bms_keeps_the_orders_of_the_unlikeliest_slices() -> None:
    prior = [0.4, 0.3, 0.2, 0.1]
    assert bms(4, 2, prior) == bms(4, 4, prior)[:2]
    assert [sequence[0] for sequence in bms(4, 4, prior)] == [3, 2, 1, 0]


def test_conditional_sampling_draws_unlikely_slices_first_more_often() -> None:
    prior = [0.7, 0.1, 0.1, 0.1]
    first = [conditional(4, 1, seed, prior)[0][0] for seed in range(2000)]
    # a slice comes first with probability (1 - prior) / (L - 1)
    assert abs(first.count(0) / 2000 - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 2000)


def test_a_slice_that_is_always_asked_for_is_drawn_last() -> None:
    assert {conditional(3, 2, seed, [0.0, 1.0, 0.0])[0][-1] for seed in range(20)} == {1}


def test_other_seeds_draw_other_orders() -> None:
    assert len({conditional(6, 3, seed) for seed in range(10)}) == 10
