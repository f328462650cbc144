"""What is expected to be left: exactly, against enumeration, against drawn histories, and from below."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import (
    cyclic,
    expected_survivors,
    limit_share,
    optimal,
    plan_sequences,
    retention_bound,
    rotation_share,
    simulate,
)

Sequences = tuple[tuple[int, ...], ...]


def by_enumeration(shards: int, sequences: Sequences, requests: int, prior: np.ndarray) -> tuple[float, float]:
    """Go through every course that the requests can take: mean length and shards that serve."""
    places = list(itertools.product(range(shards), range(len(sequences[0]))))
    length = serving = 0.0
    for course in itertools.product(places, repeat=requests):
        chance = float(np.prod([prior[place] for place in course]))
        for shard in range(shards):
            asked = {slice_ for m, slice_ in course if m == shard}
            left = max(next((n for n, s in enumerate(sequence) if s in asked), len(sequence)) for sequence in sequences)
            length += chance * left / shards
            serving += chance * (left > 0)
    return length, serving


@pytest.mark.parametrize("requests", [0, 1, 2, 4])
@pytest.mark.parametrize("skewed", [False, True])
def test_it_is_what_enumeration_gives(requests: int, skewed: bool) -> None:
    prior = np.full((2, 3), 1 / 6) if not skewed else np.array([[0.4, 0.1, 0.05], [0.2, 0.05, 0.2]])
    for sequences in (optimal(3, 2), cyclic(3, 4), plan_sequences("sisa", 3, 1)):
        found = expected_survivors(2, sequences, [requests], prior)[0]
        length, serving = by_enumeration(2, sequences, requests, prior)
        assert found.length.mean == pytest.approx(length)
        assert found.shards.mean == pytest.approx(serving)
        assert found.data.mean == pytest.approx(length / 3)


@pytest.mark.parametrize(("shards", "slices", "budget"), [(5, 6, 3), (2, 10, 4), (3, 16, 3)])
def test_it_is_what_drawn_histories_give(shards: int, slices: int, budget: int) -> None:
    sequences = plan_sequences("cyclic", slices, budget)
    exact = expected_survivors(shards, sequences, [1, 20])
    for moment, drawn in zip(exact, simulate(shards, sequences, [1, 20], 20_000, seed=7).moments, strict=True):
        error = np.hypot(drawn.length.standard_error, moment.length.standard_error)
        assert abs(moment.length.mean - drawn.length.mean) < 4 * error


def test_beyond_what_can_be_listed_it_says_its_error() -> None:
    assert expected_survivors(2, cyclic(14, 2), [5])[0].length.standard_error == 0
    assert expected_survivors(2, cyclic(15, 2), [5])[0].length.standard_error > 0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(0, 25))
def test_all_rotations_leave_what_their_closed_form_says(shards: int, slices: int, requests: int) -> None:
    exact = expected_survivors(shards, cyclic(slices, slices), [requests])[0]
    assert rotation_share(slices, requests, shards) == pytest.approx(exact.data.mean)


def test_beyond_what_can_be_listed_all_rotations_are_exact_and_what_drawn_histories_give() -> None:
    sequences = cyclic(20, 20)
    [exact], [drawn] = expected_survivors(3, sequences, [9]), simulate(3, sequences, [9], 10_000).moments
    for name in ("length", "shards"):
        found, other = getattr(exact, name), getattr(drawn, name)
        assert found.standard_error == 0
        assert abs(found.mean - other.mean) <= 4 * other.standard_error + 1e-9


@pytest.mark.parametrize("requests", [0, 1, 2, 5])
def test_ever_finer_slices_tend_to_their_limit(requests: int) -> None:
    assert rotation_share(120, requests) == pytest.approx(limit_share(requests), abs=0.05)
    sisa = expected_survivors(1, [tuple(range(13))], [requests])[0].data.mean
    assert sisa == pytest.approx(limit_share(requests, rotations=False), abs=0.05)


@pytest.mark.parametrize("requests", [-1, [1, -3]])
def test_negative_numbers_of_requests_are_refused(requests: object) -> None:
    with pytest.raises(ConfigurationError, match="non-negative"):
        expected_survivors(1, [(0, 1)], requests if isinstance(requests, list) else [requests])  # type: ignore[list-item]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), st.integers(0, 999))
def test_the_closed_form_is_a_lower_bound(shards: int, slices: int, budget: int, requests: int, seed: int) -> None:
    sequences = plan_sequences("random", slices, min(budget, slices), seed=seed)
    exact = expected_survivors(shards, sequences, [requests])[0].length.mean
    assert retention_bound(shards, sequences, requests) <= exact + 1e-9


@pytest.mark.parametrize(("shards", "slices", "budget", "requests"), [(1, 8, 2, 2), (2, 12, 2, 1), (5, 6, 2, 1)])
def test_for_fewer_rotations_than_slices_the_papers_expression_is_no_lower_bound(
    shards: int, slices: int, budget: int, requests: int
) -> None:
    paper = 0.0
    for stage in range(1, slices + 1):
        touched = 1 - (1 - stage / (shards * slices)) ** requests
        paper += 1 - touched ** min(budget, slices // stage)
    exact = expected_survivors(shards, cyclic(slices, budget), [requests])[0].length.mean
    assert paper > exact
    assert retention_bound(shards, cyclic(slices, budget), requests) <= exact
