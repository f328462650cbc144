"""The training data by slices."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
)

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
    with pytest.raises(UnsupportedError, match="its own batch_sampler"):
        check_loader(loader)


def test_a_dataloader_class_that_cannot_be_made_again_is_refused() -> None:
    class Own(DataLoader[Any]):
        def __init__(self, only: Any) -> None:
            super().__init__(only, batch_size=4)

    with pytest.raises(UnsupportedError, match="Own does not take DataLoader's arguments"):
        TrainingData(Own(People.make()), "owners", PARTITION)


def test_the_units_data_set_has_the_attributes_of_the_scripts_own_for_its_rows_alone() -> None:
    people = People.make()
    rows = data_of(people).unit_loader([4, 2], seed=0).dataset
    assert rows.owners == [people.owners[4], people.owners[2]]  # type: ignore[attr-defined]
    assert torch.equal(rows.features, people.features[[4, 2]])  # type: ignore[attr-defined]
    assert rows.without("user-1").owners  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="missing"):
        rows.missing  # type: ignore[attr-defined] # noqa: B018
    assert pickle.loads(pickle.dumps(rows)).owners == rows.owners  # type: ignore[attr-defined]


class Scaled(DataLoader[Any]):
    """Takes an argument of its own, as torch_geometric's `follow_batch` is."""

    def __init__(self, rows: Any, scale: float = 1.0, **kwargs: Any) -> None:
        self.scale = scale
        super().__init__(rows, **kwargs)


def test_arguments_of_a_dataloader_class_of_the_scripts_own_are_kept() -> None:
    data = TrainingData(Scaled(People.make(), scale=100.0, batch_size=4), "owners", PARTITION)
    loader: Any = data.unit_loader([1, 2], seed=0)
    assert (type(loader), loader.scale, loader.batch_size) == (Scaled, 100.0, 4)


def test_an_argument_that_the_class_does_not_keep_is_refused() -> None:
    class Forgetful(DataLoader[Any]):
        def __init__(self, rows: Any, scale: float = 1.0, **kwargs: Any) -> None:
            self._factor = scale
            super().__init__(rows, **kwargs)

    with pytest.raises(UnsupportedError, match=r"Forgetful takes an argument 'scale' .* Set self\.scale = scale"):
        TrainingData(Forgetful(People.make(), scale=2.0), "owners", PARTITION)


def test_an_argument_that_is_taken_by_any_name_is_refused_where_it_would_be_lost() -> None:
    class Loose(DataLoader[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.scale = kwargs.pop("scale", 1.0)
            super().__init__(*args, **kwargs)

    TrainingData(Loose(People.make()), "owners", PARTITION)
    with pytest.raises(UnsupportedError, match=r"Loose has another scale: 1\.0 instead of 2\.0"):
        TrainingData(Loose(People.make(), scale=2.0), "owners", PARTITION)


class EasyFirst(SequentialSampler):
    """An order of its own."""


class Balanced(RandomSampler):
    """Likewise."""


@pytest.mark.parametrize("sampler", [EasyFirst, Balanced])
def test_a_sampler_of_the_scripts_own_is_refused_whatever_it_is_derived_from(sampler: Any) -> None:
    people = People.make()
    with pytest.raises(UnsupportedError, match=rf"draws rows by {sampler.__name__}"):
        check_loader(DataLoader(people, 4, sampler=sampler(people)))


def test_an_index_is_the_row_of_the_innermost_data_set() -> None:
    rows = list("abcdef")
    assert subjects_of(Subset(Subset(rows, [5, 3, 1]), torch.tensor([2, 0])), "index") == ["1", "5"]


def test_an_index_of_concatenated_data_sets_names_the_part() -> None:
    first, second = list("abc"), list("de")
    both = ConcatDataset([Subset(first, [2, 0]), second])
    assert subjects_of(both, "index") == ["0:2", "0:0", "1:0", "1:1"]
    assert subjects_of(Subset(both, [1, 0]), "index") == ["0:0", "0:2"]  # whatever of the parts is left


def test_a_row_that_is_there_twice_has_one_index() -> None:
    rows = list("abc")
    assert subjects_of(ConcatDataset([rows, Subset(rows, [1])]), "index") == ["0", "1", "2", "1"]


def test_an_index_of_stacked_data_sets_is_refused_where_they_were_split_apart() -> None:
    rows = list("abc")
    assert subjects_of(StackDataset(x=Subset(rows, [2, 0]), y=Subset(rows, [2, 0])), "index") == ["2", "0"]
    with pytest.raises(DataError, match="rows with different indices"):
        subjects_of(StackDataset(Subset(rows, [2, 0]), Subset(rows, [0, 2])), "index")


def test_ids_of_parts_come_through_concatenation() -> None:
    people = People.make()
    both = ConcatDataset([Subset(people, [5, 1]), people])
    assert subjects_of(both, "owners") == ["user-5", "user-1", *people.owners]
