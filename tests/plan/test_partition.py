"""The partition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.plan import Partition, canonical_subject

SIZES = st.integers(1, 12)
SUBJECTS = st.text(min_size=1)


@given(SUBJECTS, SIZES, SIZES, st.integers(0, 2**40))
def test_a_place_is_within_the_partition_and_always_the_same(subject: str, shards: int, slices: int, seed: int) -> None:
    place = Partition(shards, slices, seed).place(subject)
    assert 0 <= place.shard < shards
    assert 0 <= place.slice < slices
    assert Partition(shards, slices, seed).place(subject) == place


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_places_are_uniform(seed: int) -> None:
    partition, subjects = Partition(4, 5, seed), 20_000
    counts = Counter(partition.place(f"user-{number}") for number in range(subjects))
    expected = subjects / 20
    chi_square = sum((counts[place] - expected) ** 2 / expected for place in counts)
    assert len(counts) == 20
    assert chi_square < 43.8  # the 99.9 % point at 19 degrees of freedom


def test_the_seed_moves_people() -> None:
    moved = [Partition(4, 5, 0).place(str(n)) != Partition(4, 5, 1).place(str(n)) for n in range(1000)]
    assert 900 < sum(moved) < 990


@pytest.mark.parametrize("number", [17, np.int64(17), np.uint8(17), torch.tensor(17), "17"])
def test_every_spelling_of_a_number_is_one_subject(number: object) -> None:
    assert canonical_subject(number) == "17"


@pytest.mark.parametrize("subject", [1.0, None, True, b"17", "", [1], np.float32(1)])
def test_ids_without_one_spelling_are_refused(subject: object) -> None:
    with pytest.raises(DataError, match="Expected a non-empty string or an integer"):
        canonical_subject(subject)


@pytest.mark.parametrize(
    ("argument", "value"), [("shards", 0), ("slices", -1), ("slices", 1.5), ("seed", -1), ("shards", True)]
)
def test_sizes_out_of_range_are_refused(argument: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected argument `{argument}` to be an integer of at least"):
        Partition(**{"shards": 2, "slices": 2, argument: value})  # type: ignore[arg-type]
