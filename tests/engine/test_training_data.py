"""The training data by slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, Subset

from lightning_s3t.engine.subjects import subjects_of
from lightning_s3t.engine.training_data import TrainingData, check_loader
from lightning_s3t.errors import DataError, UnsupportedError
from lightning_s3t.plan import Partition, UnitId
from tests.people import People

PARTITION = Partition(shards=2, slices=2)


def data_of(people: People, **loader: Any) -> TrainingData:
    return TrainingData(DataLoader(people, **{"batch_size": 4, **loader}), "owners", PARTITION)


def test_every_row_is_in_one_slice_and_all_rows_of_a_person_in_the_same() -> None:
    people = People.make()
    data = data_of(people)
    assert sorted(row for rows in data.rows_by_place.values() for row in rows) == list(range(len(people)))
    for place, rows in data.rows_by_place.items():
        assert all(PARTITION.place(people.owners[row]) == place for row in rows)


def test_cumulative_units_see_their_prefix_and_disjoint_ones_the_last_slice() -> None:
    data = data_of(People.make())
    first, both = UnitId(0, (1,)), UnitId(0, (1, 0))
    assert set(data.rows(both, "cumulative")) > set(data.rows(first, "cumulative"))
    assert set(data.rows(both, "disjoint")) == set(data.rows(both, "cumulative")) - set(data.rows(first, "cumulative"))


def test_forgotten_people_are_left_out() -> None:
    people = People.make()
    data = data_of(people)
    data.leave_out({"user-3"})
    rows = [row for rows in data.rows_by_place.values() for row in rows]
    assert "user-3" not in {people.owners[row] for row in rows}
    assert len(rows) == len(people) - 3


def test_a_units_order_depends_on_its_seed_alone() -> None:
    def order(seed: int, extra: int) -> list[int]:
        torch.manual_seed(extra)
        data = data_of(People.make(40 + extra), shuffle=True)
        loader = data.unit_loader(list(range(20)), seed)
        return [int(x) for x in torch.cat([batch[1] for batch in _with_rows(loader)])]

    assert order(1, 0) == order(1, 5)
    assert order(1, 0) != order(2, 0)


def _with_rows(loader: DataLoader[Any]) -> DataLoader[Any]:
    rows = Subset(People(torch.zeros(20, 8), torch.arange(20), [""] * 20), range(20))
    return DataLoader(rows, loader.batch_size, shuffle=True, generator=loader.generator)


def test_the_units_loader_keeps_what_the_script_chose() -> None:
    def collate(rows: Any) -> Any:
        return rows

    data = data_of(People.make(), num_workers=2, collate_fn=collate, drop_last=True, persistent_workers=True)
    loader = data.unit_loader([1, 2, 3], seed=0)
    kept = (
        loader.batch_size,
        loader.num_workers,
        loader.collate_fn,
        loader.drop_last,
        loader.persistent_workers,
    )
    assert kept == (4, 2, collate, True, True)
    assert isinstance(loader.sampler, SequentialSampler)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_see_the_rows_in_the_order_that_there_is_without_them(workers: int) -> None:
    def epochs(count: int) -> list[list[float]]:
        data = data_of(People.make(20), shuffle=True, num_workers=count)
        loader = data.unit_loader(data.rows(UnitId(0, (0, 1)), "cumulative"), seed=3)
        seen = []
        for _ in range(3):
            # Lightning stops at the last batch, without asking whether there is one more
            batches = iter(loader)
            seen.append([float(x) for _ in range(len(loader)) for x in next(batches)[0][:, 0]])
        return seen

    assert epochs(workers) == epochs(0)
    assert len({tuple(epoch) for epoch in epochs(0)}) == 3


class Augmented(Dataset[Any]):
    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.owners = [f"user-{row}" for row in range(40)]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> float:
        return float(self.generator.random())


def test_generators_that_a_data_set_holds_are_seeded_for_each_unit() -> None:
    dataset = Augmented()
    data = TrainingData(DataLoader(dataset), "owners", PARTITION)
    data.seed_generators(7)
    first = [dataset[0] for _ in range(3)]
    data.seed_generators(7)
    assert [dataset[0] for _ in range(3)] == first
    data.seed_generators(8)
    assert [dataset[0] for _ in range(3)] != first


def test_ids_may_be_numbers_arrays_or_tensors_and_come_through_subsets() -> None:
    assert subjects_of([0, 0], lambda rows: torch.tensor([3, 4])) == ["3", "4"]
    assert subjects_of([0, 0], lambda rows: np.array([3, 4])) == ["3", "4"]
    assert subjects_of(Subset(People.make(), [5, 1]), "owners") == ["user-5", "user-1"]


def test_too_few_ids_are_refused() -> None:
    with pytest.raises(DataError, match="gave 1 ids for 2 rows"):
        subjects_of([0, 0], lambda rows: ["a"])


def test_a_batch_sampler_of_the_scripts_own_is_refused() -> None:
    class Own(BatchSampler):
        pass

    people = People.make()
    loader = DataLoader(people, batch_sampler=Own(SequentialSampler(people), 4, False))
    with pytest.raises(UnsupportedError, match="batch_sampler of its own"):
        check_loader(loader)


def test_a_dataloader_class_that_cannot_be_made_again_is_refused() -> None:
    class Own(DataLoader[Any]):
        def __init__(self, only: Any) -> None:
            super().__init__(only, batch_size=4)

    data = TrainingData(Own(People.make()), "owners", PARTITION)
    with pytest.raises(UnsupportedError, match="Own does not take DataLoader's arguments"):
        data.unit_loader([1], seed=0)
