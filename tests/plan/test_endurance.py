"""How many requests a plan stands: against play request by request, and what a worth is."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import PAPER_CURVES, Worth, cyclic, expected_lifetime, optimal, requests_until

LEVELS = (0.9, 0.5, 0.2)


def played(shards: int, sequences: tuple[tuple[int, ...], ...], worth: Worth, seed: int) -> list[int]:
    """Ask until less than the last level serves; return the number of the request that went below each."""
    draw, slices = random.Random(seed), len(sequences[0])
    asked: list[set[int]] = [set() for _ in range(shards)]
    values, below, number = worth.by_depth(slices), dict.fromkeys(LEVELS, 0), 0
    while not all(below.values()):
        number += 1
        asked[draw.randrange(shards)].add(draw.randrange(slices))
        lefts = [
            max(next((n for n, s in enumerate(sequence) if s in gone), slices) for sequence in sequences)
            for gone in asked
        ]
        quality = sum(values[left] for left in lefts) / shards
        for level in LEVELS:
            if quality < level - 1e-9:
                below[level] = below[level] or number
    return [below[level] for level in LEVELS]


@pytest.mark.parametrize("worth", [Worth(), Worth((0.5, 1.0), (0.8, 1.0))], ids=["data", "curve"])
@pytest.mark.parametrize(("shards", "slices", "budget"), [(1, 3, 2), (4, 5, 2)])
def test_it_is_what_play_gives(shards: int, slices: int, budget: int, worth: Worth) -> None:
    sequences = optimal(slices, budget)
    naive = np.array([played(shards, sequences, worth, seed) for seed in range(1500)])
    for number, found in enumerate(requests_until(shards, sequences, LEVELS, worth)):
        error = math.hypot(found.requests.standard_error, naive[:, number].std() / math.sqrt(len(naive)))
        assert abs(found.requests.mean - naive[:, number].mean()) <= 4 * error + 1e-12
        # at most 5 of 100 end before the low number
        assert (naive[:, number] < found.low).mean() < 0.08


def test_a_level_just_above_nothing_is_the_deletion_rate() -> None:
    [found] = requests_until(3, cyclic(4, 2), [1e-6])
    assert abs(found.requests.mean - expected_lifetime(3, cyclic(4, 2))) < 4 * found.requests.standard_error


def test_more_shards_move_a_level_further_than_finer_slices_do() -> None:
    [few], [fine], [many] = (
        requests_until(shards, cyclic(slices, slices), [0.5]) for shards, slices in ((5, 4), (5, 12), (20, 4))
    )
    assert few.requests.mean < fine.requests.mean < many.requests.mean


def test_what_always_serves_never_falls_below_a_floor() -> None:
    [found] = requests_until(2, cyclic(3, 3), [0.5], Worth(empty=0.6))
    assert found.requests.mean == math.inf


def test_data_without_requests_serves_for_ever() -> None:
    [found] = requests_until(1, [(0, 1), (1, 0)], [0.5], prior=[1.0, 0.0])
    assert found.requests.mean == math.inf


@settings(max_examples=50)
@given(st.sampled_from([Worth(), Worth(empty=0.3), *PAPER_CURVES.values()]), st.integers(1, 30))
def test_a_longer_prefix_is_never_worth_less_and_a_full_shard_is_worth_one(worth: Worth, slices: int) -> None:
    values = worth.by_depth(slices)
    assert len(values) == slices + 1
    assert (np.diff(values) >= 0).all()
    assert values[-1] == 1


def test_the_papers_drops_are_those_of_as_many_slices() -> None:
    assert PAPER_CURVES["cifar-10"].by_depth(6)[1:].tolist() == pytest.approx([0.991, 0.992, 0.994, 0.998, 0.998, 1])


def test_scores_without_one_at_full_depth_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="last stage, 3"):
        Worth.of_scores({1: 0.5, 2: 0.6}, slices=3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shares": (), "values": ()},
        {"shares": (0.5, 0.5, 1.0), "values": (1, 1, 1)},
        {"shares": (0.0, 1.0), "values": (1, 1)},
        {"shares": (0.5,), "values": (1,)},
        {"shares": (0.5, 1.0), "values": (1,)},
        {"values": (math.nan,)},
        {"empty": math.inf},
    ],
)
def test_a_worth_that_is_none_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="worth"):
        Worth(**arguments)


@pytest.mark.parametrize("wrong", [{"levels": [0.0]}, {"levels": [1.5]}, {"levels": [math.nan]}, {"trials": 1}])
def test_what_cannot_be_counted_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"level|trials"):
        requests_until(2, cyclic(3, 2), **wrong)
