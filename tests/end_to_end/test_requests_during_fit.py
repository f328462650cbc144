"""Deletion requests that come in while a fit runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_s3t import S3T
from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Store
from tests.people import People, assert_bitwise_equal, fit, tensors_of

SHARDS, SLICES = 2, 2
STEPS: list[str] = []  # the unit of each training step; a callback's own attributes are set back between units


class Requests(Callback):
    """Makes a request before a batch of a unit, once, and notes every step."""

    def __init__(self, unit: str, ask: Callable[[], Any], batch: int = 1) -> None:
        self.unit = unit
        self.ask = ask
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        s3t = next(c for c in trainer.callbacks if isinstance(c, S3T))  # type: ignore[attr-defined]
        STEPS.append(str(s3t.current_unit))
        if STEPS.count(self.unit) == self.batch and STEPS[-1] == self.unit:
            self.ask()


@pytest.fixture(autouse=True)
def _no_steps() -> None:
    STEPS.clear()


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


@pytest.mark.parametrize("ask", [forget_in, forget_from_elsewhere])
def test_the_unit_that_a_request_reaches_is_broken_off_and_trained_again_without_the_person(
    tmp_path: Path, ask: Callable[[Path, str], None]
) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    fit(store, People.make(), Requests("0/0", lambda: ask(store, person)), epochs=3)
    # one step before the request; then all of them on the rows that are left
    assert STEPS.index("0/0") == 0
    fit(tmp_path / "scratch", People.make().without(person), epochs=3)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


def test_a_unit_that_was_broken_off_takes_no_further_step(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    whole: list[str] = []
    fit(tmp_path / "scratch", People.make().without(person), Requests("none", whole.clear), epochs=3)
    of_scratch = STEPS.count("0/0")
    STEPS.clear()
    fit(store, People.make(), Requests("0/0", lambda: forget_in(store, person), batch=2), epochs=3)
    assert STEPS.count("0/0") == 2 + of_scratch


def test_a_unit_that_the_request_does_not_reach_goes_on(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0, shard=1)
    fit(tmp_path / "other", People.make(), Requests("none", STEPS.clear))
    steps = STEPS.count("0/0")
    STEPS.clear()
    fit(store, People.make(), Requests("0/0", lambda: forget_in(store, person)))
    assert STEPS.count("0/0") == steps
    fit(tmp_path / "scratch", People.make().without(person))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


def test_units_that_were_done_and_are_revoked_are_built_again_in_the_same_fit(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    fit(store, People.make(), Requests("1/0", lambda: forget_in(store, person)))
    with Store.open(store) as opened:
        assert UnitId(0, (0,)) in opened.alive()
    fit(tmp_path / "scratch", People.make().without(person))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


def test_checkpoints_of_a_unit_that_was_broken_off_are_erased(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)
    folder = tmp_path / "checkpoints"
    seen: list[Path] = []

    def ask() -> None:
        seen.extend(folder.glob("*.ckpt"))
        forget_in(store, person)

    keep_all = ModelCheckpoint(dirpath=folder, filename="{epoch}-{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = {"enable_checkpointing": True}
    fit(store, People.make(), keep_all, Requests("0/0", ask, batch=2), trainer=trainer, epochs=3)
    assert seen
    with Store.open(store) as opened:
        kept = {Path(file["path"]) for record in opened.provenance() for file in record["files"]}
    assert set(folder.glob("*.ckpt")) <= kept
