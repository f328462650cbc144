"""Deletion requests that come in while a fit runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Store
from tests.people import People, UnitLog, assert_bitwise_equal, fit, tensors_of
from tests.tiers import nightly_except

SHARDS, SLICES = 2, 2


class Requests(UnitLog):
    """Notes every step, and makes a request after a batch of a unit, once."""

    def __init__(self, path: Path, unit: str = "none", ask: Callable[[], Any] = lambda: None, batch: int = 1) -> None:
        super().__init__(path, every_batch=True)
        self.unit = unit
        self.ask = ask
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if self.units.count(self.unit) == self.batch and self.units[-1] == self.unit:
            self.ask()


def wait_for_the_end() -> None:
    """Go on for longer than it takes until the request is seen: the process is ended meanwhile."""
    time.sleep(5)
    raise AssertionError("the unit was not broken off")


def person_at(slice_: int, shard: int = 0) -> str:
    partition = Partition(SHARDS, SLICES)
    places = {owner: partition.place(owner) for owner in People.make().owners}
    return next(owner for owner, place in places.items() if (place.shard, place.slice) == (shard, slice_))


def forget_in(store: Path, person: str) -> None:
    with Store.open(store) as opened:
        opened.forget([person])


def forget_from_elsewhere(store: Path, person: str) -> None:
    code = f"from lightning_s3t.store import Store; Store.open({str(store)!r}).forget([{person!r}])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("ask", nightly_except([forget_in, forget_from_elsewhere], forget_in))
def test_the_unit_that_a_request_reaches_is_broken_off_and_trained_again_without_the_person(
    tmp_path: Path, ask: Callable[[Path, str], None]
) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    fit(store, People.make(), Requests(tmp_path / "steps", "0/0", lambda: ask(store, person)), epochs=3)
    fit(tmp_path / "scratch", People.make().without(person), epochs=3)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


def test_a_unit_that_was_broken_off_takes_no_further_step(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    scratch = UnitLog(tmp_path / "scratch.txt", every_batch=True)
    fit(tmp_path / "scratch", People.make().without(person), scratch, epochs=3)

    def ask() -> None:
        forget_in(store, person)
        wait_for_the_end()

    requests = Requests(tmp_path / "steps.txt", "0/0", ask, batch=2)
    fit(store, People.make(), requests, epochs=3)
    assert requests.units.count("0/0") == 2 + scratch.units.count("0/0")
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
def test_a_unit_that_the_request_does_not_reach_goes_on(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0, shard=1)
    other = UnitLog(tmp_path / "other.txt", every_batch=True)
    fit(tmp_path / "other", People.make(), other)
    requests = Requests(tmp_path / "steps.txt", "0/0", lambda: forget_in(store, person))
    fit(store, People.make(), requests)
    assert requests.units.count("0/0") == other.units.count("0/0")
    fit(tmp_path / "scratch", People.make().without(person))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


def test_units_that_were_done_and_are_revoked_are_built_again_in_the_same_fit(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    fit(store, People.make(), Requests(tmp_path / "steps", "1/0", lambda: forget_in(store, person)))
    with Store.open(store) as opened:
        assert UnitId(0, (0,)) in opened.alive()
    fit(tmp_path / "scratch", People.make().without(person))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


def test_checkpoints_of_a_unit_that_was_broken_off_are_erased(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    folder = tmp_path / "checkpoints"
    seen = tmp_path / "seen.txt"

    def ask() -> None:
        seen.write_text("\n".join(map(str, folder.rglob("*.ckpt"))))
        forget_in(store, person)
        wait_for_the_end()

    keep_all = ModelCheckpoint(dirpath=folder, filename="{epoch}-{step}", every_n_train_steps=1, save_top_k=-1)
    requests = Requests(tmp_path / "steps.txt", "0/0", ask, batch=2)
    fit(store, People.make(), keep_all, requests, trainer={"enable_checkpointing": True}, epochs=3)
    assert seen.read_text()
    with Store.open(store) as opened:
        kept = {Path(file["path"]) for record in opened.provenance() for file in record["files"]}
    assert set(folder.rglob("*.ckpt")) == kept
