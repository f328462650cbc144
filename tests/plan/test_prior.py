"""Priors: what is taken, and what is refused in which words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import (
    Partition,
    PlanProblem,
    bms,
    compare,
    conditional,
    expected_lifetime,
    optimal,
    plan_sequences,
    slice_prior,
)
from lightning_s3t.plan.problem import check_place_prior, check_prior

WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=8)


@given(WEIGHTS)
def test_probabilities_are_taken_as_they_are(weights: list[float]) -> None:
    prior = np.array(weights) / sum(weights)
    np.testing.assert_allclose(check_prior(prior, len(prior)), prior, atol=1e-12)


def test_without_a_prior_all_slices_are_alike() -> None:
    assert check_prior(None, 4).tolist() == [0.25] * 4
    assert check_place_prior(None, 2, 2).tolist() == [[0.25] * 2] * 2


@given(WEIGHTS, st.integers(1, 4))
def test_a_prior_by_slice_asks_every_shard_alike(weights: list[float], shards: int) -> None:
    prior = np.array(weights) / sum(weights)
    by_place = check_place_prior(prior, shards, len(prior))
    np.testing.assert_allclose(by_place.sum(axis=0), prior, atol=1e-12)
    np.testing.assert_allclose(by_place, by_place[:1].repeat(shards, axis=0))


def test_planners_sum_a_prior_by_shard_and_slice_over_the_shards() -> None:
    np.testing.assert_allclose(check_prior([[0.1, 0.2], [0.3, 0.4]], 2), [0.4, 0.6])


BAD = [
    ([0.5, -0.1, 0.6], r"The prior has the entry -0.1. Expected probabilities from 0 to 1"),
    ([0.5, float("nan"), 0.5], r"The prior has the entry nan"),
    ([float("inf"), 0, 0], r"The prior has the entry inf"),
    ([0.5, 0.2, 0.2], r"The prior sums to 0.9. Expected probabilities that sum to 1. Divide them by their sum"),
    ([1, 1, 1], r"The prior sums to 3"),
    ([0.5, 0.5], r"The prior has the shape \(2,\). Expected one probability for each of the 3 slices"),
    ([[[1 / 3] * 3]], r"The prior has the shape \(1, 1, 3\)"),
    (["a", "b", "c"], r"The prior cannot be read as numbers"),
    ([[0.5, 0.5], [0.5]], r"The prior cannot be read as numbers"),
]


@pytest.mark.parametrize(("prior", "message"), BAD)
@pytest.mark.parametrize("planner", [bms, conditional, optimal], ids=lambda planner: planner.__name__)
def test_planners_refuse_a_prior_that_is_off(planner: object, prior: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        planner(3, 2, prior=prior)  # type: ignore[operator]


@pytest.mark.parametrize(("prior", "message"), [entry for entry in BAD if "shape" not in entry[1]])
def test_the_theory_refuses_a_prior_that_is_off(prior: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        expected_lifetime(2, [(0, 1, 2)], prior)  # type: ignore[arg-type]


def test_a_prior_for_another_number_of_shards_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"shape \(3, 2\). Expected .* shape \(2, 2\)"):
        expected_lifetime(2, [(0, 1)], np.full((3, 2), 1 / 6))


@pytest.mark.parametrize("planner", ["cyclic", "random", "all", "sisa"])
def test_a_prior_is_not_ignored_by_planners_that_take_none(planner: str) -> None:
    with pytest.raises(ConfigurationError, match=r"does not use one\. Choose one of bms, conditional, optimal"):
        plan_sequences(planner, 1, 1, prior=[1.0])


@given(st.dictionaries(st.text(min_size=1), st.floats(0.01, 1e3), min_size=1, max_size=20), st.integers(0, 9))
def test_the_priors_of_subjects_add_up_where_the_subjects_are(subjects: dict[str, float], seed: int) -> None:
    partition = Partition(2, 3, seed)
    found = slice_prior(subjects, partition)
    expected = np.zeros((2, 3))
    for subject, weight in subjects.items():
        place = partition.place(subject)
        expected[place.shard, place.slice] += weight / sum(subjects.values())
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_subject_with_an_impossible_prior_is_named(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="The prior of subject 'bob' is"):
        slice_prior({"ann": 1.0, "bob": weight}, Partition(1, 2))


def test_at_least_one_request_must_be_possible() -> None:
    with pytest.raises(ConfigurationError, match="The priors of all subjects are 0"):
        slice_prior({"ann": 0.0}, Partition(1, 2))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("slices", 0), ("slices", True), ("shards", 0), ("horizon", 0), ("horizon", 1.5)],
)
def test_a_problem_is_checked_when_it_is_made(argument: str, value: object) -> None:
    arguments = {"slices": 3, argument: value}
    with pytest.raises(ConfigurationError, match=rf"`{argument}` to be an integer of at least 1 but got {value!r}"):
        PlanProblem.of(**arguments)  # type: ignore[arg-type]


def test_a_problem_knows_its_prior_by_slice_and_by_place() -> None:
    problem = PlanProblem.of(2, prior=[[0.5, 0.1], [0.1, 0.3]], shards=2)
    assert problem.probabilities.tolist() == pytest.approx([0.6, 0.4])
    assert problem.places.tolist() == [[0.5, 0.1], [0.1, 0.3]]
    assert (problem.shards, problem.horizon, problem.uniform) == (2, 1, False)


def test_planners_are_compared_under_one_prior_that_is_checked_once() -> None:
    prior = [[0.5, 0.1], [0.1, 0.3]]
    for found in compare(2, 2, 2, ("optimal", "cyclic"), prior):
        assert found.lifetime == expected_lifetime(2, found.sequences, prior)
    with pytest.raises(ConfigurationError, match="The prior sums to"):
        compare(2, 2, 2, ("optimal",), [0.5, 0.1])
