"""A store's life, killed before each of its changes to the disk: every step is whole or has not been."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lightning_s3t.plan import Partition, Place, UnitId
from lightning_s3t.store import Store
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import session
from tests.tiers import nightly_except

SETTINGS = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
PEOPLE = [f"user-{number}" for number in range(12)]
FIRST, CHILD, SECOND = UnitId(0, (0,)), UnitId(0, (0, 1)), UnitId(0, (1,))
KEYS = ["first", "child", "second", "rebuilt", "replaced"]


STEPS = [
    "register",
    "commit",
    "commit a child",
    "commit over its checkpoint",
    "forget",
    "commit again",
    "commit in its own place",
    "drop",
    "forget everyone",
]


def person_in(slice_: int) -> str:
    partition = Partition(**SETTINGS["partition"])
    return next(person for person in PEOPLE if partition.place(person) == Place(0, slice_))


def build(store: Store, unit: UnitId, key: str, checkpoint: Path) -> None:
    with store.building():
        attempt = session(store).start_unit(unit, f"key-{key}.")
        attempt.register_file(checkpoint)
        checkpoint.write_text(key)
        attempt.commit({key: torch.ones(1)}, {"made": key})


def story(folder: Path) -> list[Callable[[Store], object]]:
    last = folder / "last.ckpt"  # as with `save_last`: each unit writes over what the one before wrote
    return [
        lambda store: session(store).register(PEOPLE),
        lambda store: build(store, FIRST, "first", folder / "first.ckpt"),
        lambda store: build(store, CHILD, "child", last),
        lambda store: build(store, SECOND, "second", last),
        lambda store: store.forget([person_in(1)]),
        lambda store: build(store, SECOND, "rebuilt", last),
        lambda store: build(store, FIRST, "replaced", folder / "first.ckpt"),
        lambda store: session(store).drop([SECOND]),
        lambda store: store.forget([person_in(0), "stranger"], strict=False),
    ]


def state(store: Store) -> str:
    """What a user of the store sees of its past, as one line."""
    receipts = [(receipt.revoked, receipt.erased_files, receipt.erased_bytes) for receipt in store.receipts()]
    alive = {str(unit): record.key for unit, record in store.alive().items()}
    return json.dumps([alive, sorted(store.forgotten([*PEOPLE, "stranger"])), receipts])


@dataclass(frozen=True)
class Life:
    """A life that nobody has cut short: its folder and what was seen, before each step and after the last."""

    work: Path  # always the same folder, since files are registered by their whole path
    kept: tuple[Path, ...]
    states: tuple[str, ...]

    def go_back_to(self, step: int) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.kept[step], self.work)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    top = tmp_path_factory.mktemp("life")
    work, kept, states = top / "work", [], []
    Store.create(work / "store", SETTINGS).close()
    for number, step in enumerate([lambda store: None, *story(work)]):
        with Store.open(work / "store") as store:
            step(store)
            states.append(state(store))
        kept.append(top / str(number))
        shutil.copytree(work, kept[-1])
    return Life(work, tuple(kept), tuple(states))


def assert_nothing_but_the_living(store: Store, folder: Path) -> None:
    alive = store.alive()
    for unit in alive:
        store.load(unit)
    found = store.verify()
    assert found.passed, found.problems
    assert {path.stem for path in (store.path / "snapshots").iterdir()} == {unit.snapshot for unit in alive.values()}
    living = {str(record.provenance["made"]) for record in alive.values()}
    assert {path.read_text() for path in folder.glob("*.ckpt")} <= living
    contents = b"".join(path.read_bytes() for path in store.path.rglob("*") if path.is_file())
    assert {key for key in KEYS if f"key-{key}.".encode() in contents} == living


@pytest.mark.parametrize("step_name", nightly_except(STEPS, "commit over its checkpoint", "forget"))
def test_a_step_that_is_killed_anywhere_is_whole_or_has_not_been(life: Life, step_name: str) -> None:
    number = STEPS.index(step_name)
    step = story(life.work)[number]

    def work() -> Iterator[str]:
        with Store.open(life.work / "store") as store:
            step(store)
            yield "done"

    for fatal in itertools.count(1):
        life.go_back_to(number)
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(life.work / "store") as store:
            possible = life.states[number + 1 :][:1] if acknowledged else life.states[number:][:2]
            assert state(store) in possible, f"killed before change {fatal}"
            assert_nothing_but_the_living(store, life.work)
            step(store)  # as its caller does who has seen no answer
            assert json.loads(state(store))[:2] == json.loads(life.states[number + 1])[:2]
            assert_nothing_but_the_living(store, life.work)
        if survived:
            break
    assert fatal > 2, "the kills went past what they should hit"
