"""Correction and restriction through `trainer.fit` and a served model, bit for bit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_s3t import S3T, EnsembleModule, audit
from lightning_s3t.plan import Partition
from lightning_s3t.store import Receipt, Store
from tests.people import (
    ARGUMENTS,
    Classifier,
    People,
    PeopleData,
    UnitLog,
    assert_bitwise_equal,
    fit,
    make_trainer,
    tensors_of,
)

PERSON = "user-3"
PLACE = Partition(ARGUMENTS["shards"], ARGUMENTS["slices"]).place(PERSON)
UNIT = f"{PLACE.shard}/{PLACE.slice}"
CORRECTED = People.make().replaced(PERSON)


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first fit without the person."""
    store = tmp_path_factory.mktemp("without") / "store"
    fit(store, People.make().without(PERSON))
    return store


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first fit on the corrected data."""
    store = tmp_path_factory.mktemp("corrected") / "store"
    fit(store, CORRECTED)
    return store


def ask(store: Path, kind: str) -> Any:
    with Store.open(store) as opened:
        return getattr(opened, kind)([PERSON])


class Asks(UnitLog):
    """Makes a request after the first batch of a unit, once; the process is ended meanwhile, or goes on."""

    def __init__(self, path: Path, unit: str, request: Callable[[], Any], waits: bool = True) -> None:
        super().__init__(path, every_batch=True)
        self.unit = unit
        self.request = request
        self.waits = waits

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if self.units.count(self.unit) == 1 and self.units[-1] == self.unit:
            self.request()
            if self.waits:
                time.sleep(30)
                raise AssertionError("the unit was not broken off")


def test_a_correction_and_a_fit_give_what_a_first_fit_on_the_corrected_data_gives(store: Path, corrected: Path) -> None:
    receipt = ask(store, "rectify")
    assert receipt.revoked
    served = tensors_of(store)
    first = tensors_of(corrected)
    assert_bitwise_equal(served, {unit: first[unit] for unit in served})
    fit(store, CORRECTED)
    assert_bitwise_equal(tensors_of(store), first)


def test_a_fit_that_is_running_trains_nothing_on_the_rows_that_were_corrected_since_it_began(
    tmp_path: Path, corrected: Path
) -> None:
    store = tmp_path / "store"
    asks = Asks(tmp_path / "steps", UNIT, lambda: ask(store, "rectify"))
    trainer = make_trainer(store, asks)
    with pytest.warns(UserWarning, match="rows were corrected after this fit had loaded its data, so 3 units"):
        trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    assert asks.units.count(UNIT) == 1
    left = tensors_of(store)
    assert not any(unit.reached_by(PLACE) for unit in left)
    assert len(left) == 5
    summary = trainer.callbacks[0].summary  # type: ignore[attr-defined]
    assert all("corrected" in why for why in summary.passed_over.values())
    assert len(summary.passed_over) == 3
    fit(store, CORRECTED)
    assert_bitwise_equal(tensors_of(store), tensors_of(corrected))


def test_a_restriction_keeps_the_person_out_until_the_release_which_brings_every_bit_back(
    store: Path, without: Path, tmp_path: Path
) -> None:
    before = tensors_of(store)
    ask(store, "restrict")
    served = tensors_of(store)
    assert_bitwise_equal(served, {unit: tensors for unit, tensors in before.items() if not unit.reached_by(PLACE)})
    fit(store, People.make())
    assert_bitwise_equal(tensors_of(store), tensors_of(without))
    with Store.open(store) as opened:
        found = opened.status()
        assert (found.restricted, len(found.set_aside)) == (1, 3)
        assert found.last_fit is not None
        assert (found.last_fit["restricted"], found.last_fit["forgotten"]) == (1, 0)
        assert opened.verify().problems == ()
    report = audit(make_trainer(store), Classifier(), datamodule=PeopleData(People.make()), units=["0/0-1", "1/0-1"])
    assert report.passed, report
    ask(store, "release")
    assert_bitwise_equal(tensors_of(store), before)
    log = UnitLog(tmp_path / "log")
    fit(store, People.make(), log)
    assert log.units == [], "a fit trains again what came back"
    assert_bitwise_equal(tensors_of(store), before)


@pytest.mark.nightly
def test_forgetting_who_is_restricted_needs_no_training(store: Path, without: Path, tmp_path: Path) -> None:
    ask(store, "restrict")
    fit(store, People.make())
    ask(store, "forget")
    log = UnitLog(tmp_path / "log")
    fit(store, People.make(), log)
    assert log.units == []
    assert_bitwise_equal(tensors_of(store), tensors_of(without))


@pytest.mark.nightly
def test_a_restriction_during_a_fit_breaks_the_unit_off_and_the_fit_goes_on_without_the_person(
    tmp_path: Path, without: Path
) -> None:
    store = tmp_path / "store"
    asks = Asks(tmp_path / "steps", UNIT, lambda: ask(store, "restrict"))
    fit(store, People.make(), asks)
    assert_bitwise_equal(tensors_of(store), tensors_of(without))


@pytest.mark.nightly
def test_a_release_during_a_fit_breaks_the_unit_off_and_nothing_that_came_back_is_lost(
    store: Path, tmp_path: Path
) -> None:
    before = tensors_of(store)
    ask(store, "restrict")
    asks = Asks(tmp_path / "steps", UNIT, lambda: ask(store, "release"))
    fit(store, People.make(), asks)
    assert asks.units.count(UNIT) == 1
    assert_bitwise_equal(tensors_of(store), before)


class Heard(Callback):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def on_forget(self, receipt: Receipt) -> None:
        self.kinds.append(f"forget {receipt.kind}")

    def on_rectify(self, receipt: Receipt) -> None:
        self.kinds.append(f"rectify {receipt.kind}")

    def on_restrict(self, receipt: Receipt) -> None:
        self.kinds.append(f"restrict {receipt.kind}")

    def on_release(self, receipt: Receipt) -> None:
        self.kinds.append(f"release {receipt.kind}")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_served_model_answers_without_what_is_set_aside_and_with_every_bit_of_it_after_the_release(
    store: Path, elsewhere: bool
) -> None:
    x = People.make(10, seed=5).features
    with EnsembleModule.from_store(store, Classifier()) as served:

        def request(kind: str) -> None:
            if elsewhere:
                ask(store, kind)
            else:
                getattr(served, kind)([PERSON])

        before, survivors = served(x), dict(served.survivors)
        request("restrict")
        meanwhile = served(x)
        assert not torch.equal(before, meanwhile)
        assert not any(unit.reached_by(PLACE) for unit in served.survivors.values())
        request("release")
        assert torch.equal(served(x), before)
        assert served.survivors == survivors
        request("rectify")
        assert torch.equal(served(x), meanwhile)


def test_who_listens_hears_of_each_request_by_its_own_hook(store: Path) -> None:
    heard, s3t = Heard(), S3T(store=store, **ARGUMENTS)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[s3t, heard])
    with EnsembleModule.from_store(store, Classifier()) as served:
        trainer.test(served, PeopleData(People.make()), verbose=False)
        s3t.restrict([PERSON])
        s3t.release([PERSON])
        assert s3t.rectify([PERSON]).kind == "rectify"
        ask(store, "forget")
        s3t.deletion.poll()
        assert served.module.forgotten[-1].kind == "forget"  # type: ignore[union-attr, index]
    assert heard.kinds == ["restrict restrict", "release release", "rectify rectify", "forget forget"]
