"""The deletion rate of any sequences under any prior, three ways."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import arcane_lifetime, collector, cyclic, deletion_rate, expected_lifetime, plan_sequences
from lightning_s3t.plan.theory.lifetime import _by_counts, _by_integral


def by_inclusion_and_exclusion(probabilities: list[float]) -> float:
    """Sum over all non-empty sets of places."""
    total = 0.0
    for size in range(1, len(probabilities) + 1):
        for chosen in itertools.combinations(probabilities, size):
            total += (-1) ** (size + 1) / sum(chosen)
    return total


@pytest.mark.parametrize(("budget", "rate"), enumerate([68.5, 87.9, 99.5, 107.9, 114.5, 119.8], start=1))
def test_the_rates_of_five_shards_and_six_slices(budget: int, rate: float) -> None:
    for planner in ("cyclic", "bms", "optimal"):
        assert expected_lifetime(5, plan_sequences(planner, 6, budget)) == pytest.approx(rate, abs=0.05)


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 16))
def test_for_equal_slices_it_is_the_closed_form(shards: int, slices: int, budget: int) -> None:
    sequences = cyclic(slices, min(budget, math.factorial(slices)))
    closed = deletion_rate(shards, slices, len({sequence[0] for sequence in sequences}))
    assert expected_lifetime(shards, sequences) == pytest.approx(closed, rel=1e-9)


def test_only_first_slices_count_and_each_once() -> None:
    assert expected_lifetime(3, [(0, 1, 2), (0, 2, 1)]) == pytest.approx(deletion_rate(3, 3, 1))


weights = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)


@given(weights, st.floats(0.05, 1))
def test_all_three_forms_agree(numbers: list[float], mass: float) -> None:
    probabilities = [mass * number / sum(numbers) for number in numbers]
    expected = by_inclusion_and_exclusion(probabilities)
    assert collector(probabilities) == pytest.approx(expected, rel=1e-6)
    assert _by_integral(np.array(probabilities)) == pytest.approx(expected, rel=1e-6)
    assert _by_counts(probabilities, [1] * len(probabilities)) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20)
@given(st.integers(20, 60))
def test_many_different_probabilities_are_integrated(places: int) -> None:
    probabilities = np.arange(1, places + 1) / (places * (places + 1) / 2)
    drawn = np.random.default_rng(0).exponential(1 / probabilities, (20_000, places)).max(axis=1)
    assert collector(probabilities) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(len(drawn)))


def test_a_first_slice_without_requests_lasts_for_ever() -> None:
    assert expected_lifetime(1, [(0, 1), (1, 0)], prior=[1.0, 0.0]) == math.inf
    assert expected_lifetime(1, [(0, 1)], prior=[1.0, 0.0]) == pytest.approx(1.0)


def test_a_prior_by_shard_and_slice_is_taken_as_it_is() -> None:
    prior = [[0.5, 0.1], [0.3, 0.1]]
    assert expected_lifetime(2, [(0, 1)], prior) == pytest.approx(by_inclusion_and_exclusion([0.5, 0.3]))


@pytest.mark.parametrize("wrong", [[], [-0.1, 0.5], [0.7, 0.7]])
def test_probabilities_that_are_none_are_refused(wrong: list[float]) -> None:
    with pytest.raises(ConfigurationError):
        collector(wrong)


@pytest.mark.parametrize("blocks", [0, -1, True, 1.5])
def test_arcane_needs_blocks(blocks: int) -> None:
    with pytest.raises(ConfigurationError, match="blocks"):
        arcane_lifetime([0.5, 0.5], blocks)


def test_s3t_outlasts_arcane_and_sisa_on_equal_classes() -> None:
    assert arcane_lifetime([0.1] * 10, 6) == pytest.approx(deletion_rate(10, 6, 1))
    assert expected_lifetime(10, cyclic(6, 3)) > arcane_lifetime([0.1] * 10, 6)
