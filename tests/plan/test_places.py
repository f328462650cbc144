"""Places stay where they are: they depend on no other subject, no process and no release of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.plan import Partition, Place

ROOT = Path(__file__).parents[2]
PARTITIONS = st.builds(Partition, st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**40))
IDS = st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True)


@given(PARTITIONS, IDS, st.data())
def test_a_place_does_not_depend_on_others_or_their_order(
    partition: Partition, subjects: list[str], data: st.DataObject
) -> None:
    everyone = {subject: partition.place(subject) for subject in subjects}
    others = data.draw(st.permutations(subjects))[: data.draw(st.integers(0, len(subjects)))]
    again = Partition(partition.shards, partition.slices, partition.seed)
    assert {subject: again.place(subject) for subject in others} == {subject: everyone[subject] for subject in others}


@pytest.mark.parametrize(
    ("partition", "subject", "place"),
    [
        (Partition(5, 4), "user-17", Place(2, 3)),
        (Partition(5, 4), "17", Place(3, 1)),
        (Partition(5, 4, seed=1), "user-17", Place(1, 0)),
        (Partition(3, 7, seed=2**40), "ü-\N{SNOWMAN}", Place(2, 3)),
    ],
)
def test_places_are_those_of_the_first_release(partition: Partition, subject: str, place: Place) -> None:
    # a store keeps no list of places: another hash would let a request miss the units that it must reach
    assert partition.place(subject) == place


def test_places_are_equal_in_every_process() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom lightning_s3t.plan import Partition\n"
        "print([Partition(4, 5, 3).place(f'user-{n}') for n in range(50)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[Partition(4, 5, 3).place(f'user-{n}') for n in range(50)]}\n"}


@pytest.mark.parametrize(("shards", "slices"), [(1, 7), (7, 1), (3, 5), (10, 10)])
def test_shards_and_slices_are_uniform_each_and_together(shards: int, slices: int) -> None:
    partition, subjects = Partition(shards, slices, seed=7), 50_000
    counts = Counter(partition.place(str(number)) for number in range(subjects))
    cells = shards * slices
    expected = subjects / cells
    chi_square = sum(
        (counts[Place(shard, slice_)] - expected) ** 2 / expected for shard in range(shards) for slice_ in range(slices)
    )
    freedom = cells - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # the mean and four standard deviations


def test_places_under_two_seeds_are_independent() -> None:
    first, second, subjects = Partition(1, 4, 0), Partition(1, 4, 1), 16_000
    pairs = Counter((first.place(str(n)).slice, second.place(str(n)).slice) for n in range(subjects))
    expected = subjects / 16
    assert len(pairs) == 16
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 37.7  # 99.9 % at 15 degrees
