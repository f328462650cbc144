"""When it pays to merge the generations of people who came later."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import merge_from

FIRST, SHARDS = 5000, 5
BATCHES = st.lists(st.integers(1, 2 * FIRST // SHARDS), max_size=200)


def grow(batches: list[int]) -> tuple[list[int], list[int]]:
    """Generations after batches of people have come, each merged as it pays; and how often each batch was trained."""
    people, trained, members = [FIRST], [], []
    for number, batch in enumerate(batches):
        people.append(batch)
        trained.append(1)
        members.append([number])
        into = merge_from(people, SHARDS)
        if into is not None:
            people[into:] = [sum(people[into:])]
            members[into - 1 :] = [[one for group in members[into - 1 :] for one in group]]
            for one in members[-1]:
                trained[one] += 1
        assert sum(people) == FIRST + sum(batches[: number + 1])
    return people, trained


@given(BATCHES)
def test_few_shards_are_added(batches: list[int]) -> None:
    people, _ = grow(batches)
    largest = FIRST / SHARDS
    assert len(people) - 1 <= 2 * sum(people[1:]) / largest + math.log2(largest) + 2


@given(BATCHES)
def test_no_subject_is_trained_on_often(batches: list[int]) -> None:
    _, trained = grow(batches)
    assert all(times <= 2 + math.log2(FIRST / SHARDS) for times in trained)


@given(BATCHES)
def test_no_merged_generation_is_larger_than_a_shard_of_the_first(batches: list[int]) -> None:
    people, _ = grow(batches)
    assert all(count <= FIRST / SHARDS or count in batches for count in people[1:])


@pytest.mark.parametrize("people", [[], [1000], [1000, 30], [1000, 0], [0, 0, 0]])
def test_there_has_to_be_something_to_merge(people: list[int]) -> None:
    assert merge_from(people, SHARDS) in (None, 1)
    assert merge_from(people[:2], SHARDS) is None


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no negative number"):
        merge_from([10, -1], 1)
