"""Samplers of the script, repeated over a unit's rows alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_s3t.engine.sampling import UnitDraws, sampling_of
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import DataError, UnsupportedError
from lightning_s3t.plan import Partition, Place
from tests.people import People

PARTITION = Partition(shards=2, slices=2)
PEOPLE = People.make()


def loader_of(sampler: Any, people: People = PEOPLE) -> DataLoader[Any]:
    return DataLoader(people, batch_size=4, sampler=sampler)


def data_of(sampler: Any, people: People = PEOPLE) -> TrainingData:
    return TrainingData(loader_of(sampler, people), "owners", PARTITION)


def drawn(data: TrainingData, rows: list[int], seed: int = 1) -> list[int]:
    return [rows[at] for at in data.unit_loader(rows, seed).sampler]


def digests(data: TrainingData) -> dict[Place, tuple[str, str]]:
    return data.digests(lambda subjects: {subject: subject for subject in subjects})


def test_weights_of_a_units_own_rows_decide_how_often_it_draws_them() -> None:
    weights = [float(row % 3) for row in range(120)]
    data = data_of(WeightedRandomSampler(weights, 120 * 30))
    rows = list(range(10, 30))
    found = drawn(data, rows)
    assert len(found) == 30 * len(rows)
    shares = Counter(row % 3 for row in found)
    assert shares[0] == 0
    assert shares[2] / shares[1] == pytest.approx(2, rel=0.4)


def test_what_a_unit_draws_depends_on_its_own_rows_and_seed_alone() -> None:
    fewer = PEOPLE.without("user-3")
    ratio = WeightedRandomSampler([1.0] * 120, 240), WeightedRandomSampler([1.0] * 117, 234)
    rows = list(range(3))
    assert drawn(data_of(ratio[0]), rows) == drawn(data_of(ratio[1], fewer), rows)
    assert drawn(data_of(ratio[0]), rows) != drawn(data_of(ratio[0]), rows, seed=2)


def test_every_epoch_draws_others() -> None:
    sampler = data_of(WeightedRandomSampler([1.0] * 120, 120)).unit_loader(list(range(50)), 1).sampler
    assert list(sampler) != list(sampler)


def test_without_replacement_no_row_is_drawn_twice() -> None:
    rows = list(range(40))
    assert len(set(drawn(data_of(WeightedRandomSampler([1.0] * 120, 60, replacement=False)), rows))) == 20
    assert len(set(drawn(data_of(RandomSampler(PEOPLE, num_samples=60)), rows))) == 20


def test_rows_that_are_never_drawn_are_in_no_unit() -> None:
    chosen = list(range(0, 120, 2))
    for sampler in (SubsetRandomSampler(chosen), WeightedRandomSampler([1.0, 0.0] * 60, 120)):
        rows = [row for rows in data_of(sampler).rows_by_place.values() for row in rows]
        assert sorted(rows) == chosen


def test_a_weight_that_changes_makes_its_own_slice_another_and_no_others() -> None:
    weights = torch.ones(120)
    before = digests(data_of(WeightedRandomSampler(weights.tolist(), 120)))
    weights[7] = 2
    after = digests(data_of(WeightedRandomSampler(weights.tolist(), 120)))
    place = PARTITION.place(PEOPLE.owners[7])
    assert {found for found in before if before[found] != after[found]} == {place}


def test_another_choice_among_a_persons_rows_makes_the_slice_another() -> None:
    first, second = list(range(120)), list(range(120))
    first.remove(0)
    second.remove(40)  # both are user-0's
    before, after = digests(data_of(SubsetRandomSampler(first))), digests(data_of(SubsetRandomSampler(second)))
    assert {found for found in before if before[found] != after[found]} == {PARTITION.place("user-0")}


def test_ranks_share_one_draw() -> None:
    whole = list(UnitDraws(torch.ones(9), 9, False, seed=3))
    ranks = [list(UnitDraws(torch.ones(9), 9, False, seed=3, replicas=2, rank=rank)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [5, 5]
    assert sorted(ranks[0] + ranks[1]) == sorted([*whole, whole[0]])


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (SequentialSampler(PEOPLE), "in order"),
        (RandomSampler(PEOPLE), "shuffled"),
        (SubsetRandomSampler([1, 2]), "shuffled"),
        (WeightedRandomSampler([1.0] * 120, 60), "drawn by weight, 1/2 a row, with replacement"),
        (RandomSampler(PEOPLE, num_samples=60), "drawn uniformly, 1/2 a row, without replacement"),
    ],
)
def test_what_a_store_keeps_of_it(sampler: Any, expected: str) -> None:
    assert str(sampling_of(loader_of(sampler))) == expected


class Own(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(120))

    def __len__(self) -> int:
        return 120


class Curriculum(WeightedRandomSampler):
    pass


@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (Own(), UnsupportedError, "draws rows by Own, which may depend on the whole data set"),
        (Curriculum([1.0] * 120, 120), UnsupportedError, "draws rows by Curriculum"),
        (RandomSampler(PEOPLE, num_samples=240), UnsupportedError, "draws rows by RandomSampler"),
        (WeightedRandomSampler([1.0] * 7, 120), DataError, r"shape \(7,\) for 120 rows"),
        (WeightedRandomSampler([-1.0] * 120, 120), DataError, "not negative"),
        (SubsetRandomSampler([1, 1]), DataError, "some repeat or are not among"),
    ],
)
def test_what_cannot_be_repeated_is_refused(sampler: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        data_of(sampler)
