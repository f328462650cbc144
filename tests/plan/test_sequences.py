"""The planners."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import check_sequences, cyclic, plan_sequences

FEASIBLE = st.integers(1, 6).flatmap(
    lambda slices: st.tuples(st.just(slices), st.integers(1, min(math.factorial(slices), 200)))
)


@given(FEASIBLE, st.sampled_from(["cyclic", "random"]), st.integers(0, 5))
def test_a_planner_gives_as_many_different_orders_as_the_budget(size: tuple[int, int], planner: str, seed: int) -> None:
    slices, budget = size
    sequences = plan_sequences(planner, slices, budget, seed)
    assert len(set(sequences)) == len(sequences) == budget
    assert all(sorted(sequence) == list(range(slices)) for sequence in sequences)
    assert plan_sequences(planner, slices, budget, seed) == sequences


@given(FEASIBLE)
def test_a_larger_budget_only_adds_rotations(size: tuple[int, int]) -> None:
    slices, budget = size
    assert cyclic(slices, budget)[: budget - 1] == (cyclic(slices, budget - 1) if budget > 1 else ())


@given(st.integers(1, 8))
def test_each_slice_comes_first_and_at_every_place_once_in_a_cycle(slices: int) -> None:
    for column in zip(*cyclic(slices, slices), strict=True):
        assert sorted(column) == list(range(slices))


@given(st.integers(2, 5), st.data())
def test_beyond_a_cycle_first_slices_stay_balanced(slices: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(slices, math.factorial(slices)))
    firsts = [sequence[0] for sequence in cyclic(slices, budget)]
    counts = [firsts.count(slice_) for slice_ in range(slices)]
    assert max(counts) - min(counts) <= 1


def test_all_sequences_and_sisa() -> None:
    assert len(set(plan_sequences("all", 4, 24))) == 24
    assert plan_sequences("sisa", 3, 1) == ((0, 1, 2),)


@pytest.mark.parametrize(
    ("sequences", "budget", "message"),
    [
        (
            "cyclic",
            7,
            r"The budget is 7, and the planner 'cyclic' has 6 sequences of 3 slices. Expected a budget from 1 to 6",
        ),
        ("cyclic", 0, r"The budget is 0"),
        ("sisa", 2, r"the planner 'sisa' has 1 sequences"),
        ("all", 5, r"Set budget=6"),
        ("clever", 1, r"There is no planner 'clever'. Expected `sequences` to be one of cyclic, random, all, sisa"),
        ([[0, 1, 1]], 1, r"The sequence \(0, 1, 1\) is not a permutation of 3 slices"),
        ([[0, 1, 2], [0, 1, 2]], 2, r"Found 2 sequences, 1 of them different"),
        ([[0, 1, 2]], 2, r"Expected 2 different ones, the budget"),
    ],
)
def test_what_cannot_be_planned_is_refused(sequences: object, budget: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_sequences(sequences, 3, budget)  # type: ignore[arg-type]


def test_orders_by_hand_are_taken_as_they_are() -> None:
    assert check_sequences([[2, 0, 1], (0, 1, 2)], 3, 2) == ((2, 0, 1), (0, 1, 2))
