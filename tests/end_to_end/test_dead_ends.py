"""Deletions never end all fits: what cannot be trained on what is left is passed over, and the rest is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from lightning_s3t.errors import DataError
from lightning_s3t.plan import Place, UnitId
from lightning_s3t.store import Store
from tests.people import Classifier, People, PeopleData, assert_bitwise_equal, fit, make_trainer, tensors_of
from tests.tiers import nightly_except

PEOPLE = People.make(48, rows=1)
SMALL = Place(1, 1)


class KeepsTheLastBatch(PeopleData):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)


def people_in(place: Place, store: Path) -> list[str]:
    with Store.open(store) as opened:
        return [person for person in PEOPLE.owners if opened.partition.place(person) == place]


def forget(store: Path, people: Iterable[str]) -> None:
    with Store.open(store) as opened:
        opened.forget(people)


def fit_again(store: Path, data: PeopleData, *callbacks: Callback, **arguments: Any) -> S3T:
    trainer = make_trainer(store, *callbacks, epochs=1, **arguments)
    trainer.fit(Classifier(), datamodule=data)
    return next(callback for callback in trainer.callbacks if isinstance(callback, S3T))


def assert_all_but_passed_over(store: Path, s3t: S3T) -> None:
    assert s3t.summary is not None
    passed_over = s3t.summary.passed_over
    assert passed_over
    assert all(SMALL.slice in unit.prefix and unit.shard == SMALL.shard for unit in passed_over)
    with Store.open(store) as opened:
        alive = set(opened.alive())
        assert opened.verify().passed
    wanted = {UnitId(shard, order[:stage]) for shard in (0, 1) for order in ((0, 1), (1, 0)) for stage in (1, 2)}
    missing = wanted - alive
    assert missing == {unit for unit in wanted if any(top in unit.lineage for top in passed_over)}


@pytest.mark.parametrize("isolation", nightly_except(["forkserver", "fork", "none"], "forkserver", "none"))
def test_a_slice_that_is_smaller_than_a_batch_is_passed_over(tmp_path: Path, isolation: str) -> None:
    store = tmp_path / "store"
    fit_again(store, PeopleData(PEOPLE), isolation=isolation)
    forget(store, people_in(SMALL, store)[:-5])
    for _ in range(2):  # the next fit tries again
        with pytest.warns(UserWarning, match=r"Unit 1/1 cannot be trained on the 5 rows that deletions have left it"):
            s3t = fit_again(store, PeopleData(PEOPLE), isolation=isolation)
        assert_all_but_passed_over(store, s3t)
        assert "Unit 1/1 was skipped: DataError: Unit 1/1 trained on no batch" in str(s3t.summary)


def test_what_is_trained_beside_it_is_what_a_training_from_scratch_gives(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit_again(store, PeopleData(PEOPLE))
    gone = people_in(SMALL, store)[:-5]
    forget(store, gone)
    fit_again(store, PeopleData(PEOPLE))
    shutil.copytree(store, tmp_path / "empty")
    with Store.open(tmp_path / "empty") as opened, opened.building() as building:
        building.drop(opened.alive())
    fit_again(tmp_path / "empty", PeopleData(PEOPLE.without(*gone)))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "empty"))


def test_a_batchnorm_that_gets_one_row_is_passed_over(tmp_path: Path) -> None:
    store, data = tmp_path / "store", KeepsTheLastBatch(PEOPLE)
    fit_again(store, data, adapter=None)
    people = people_in(SMALL, store)
    forget(store, people[: (len(people) - 1) % 8])
    with pytest.warns(UserWarning, match="more than 1 value per channel"):
        s3t = fit_again(store, data, adapter=None)
    assert_all_but_passed_over(store, s3t)


def test_a_validation_every_so_many_batches_is_passed_over(tmp_path: Path) -> None:
    store, data = tmp_path / "store", KeepsTheLastBatch(PEOPLE, batch_size=4)
    fit_again(store, data, trainer={"val_check_interval": 2})
    forget(store, people_in(SMALL, store)[:-3])
    with pytest.warns(UserWarning, match="val_check_interval"):
        s3t = fit_again(store, data, trainer={"val_check_interval": 2})
    assert_all_but_passed_over(store, s3t)


class Fails(Callback):
    """An error of the script's."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def on_train_batch_start(self, *args: Any) -> None:
        raise self.error


@pytest.mark.parametrize("isolation", ["forkserver", "none"])
def test_an_error_where_no_request_has_been_ends_the_fit(tmp_path: Path, isolation: str) -> None:
    with pytest.raises(ValueError, match="of the script"):
        fit_again(tmp_path / "store", PeopleData(PEOPLE), Fails(ValueError("of the script")), isolation=isolation)


def test_an_error_that_too_few_rows_do_not_raise_ends_the_fit(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit_again(store, PeopleData(PEOPLE))
    forget(store, people_in(SMALL, store)[:1])
    with pytest.raises(RuntimeError, match="of the device"):
        fit_again(store, PeopleData(PEOPLE), Fails(RuntimeError("of the device")))


def test_too_few_rows_at_the_first_fit_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="trained on no batch"):
        fit(tmp_path / "store", PEOPLE, epochs=1, trainer={"limit_train_batches": 1.0}, module=Classifier(), shards=4)
