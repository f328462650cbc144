"""Corrections and restrictions, killed before each of their changes to the disk: whole, or not at all."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_s3t.store import Store
from tests.store.correcting_store import ANN, BOB, CLEO, PEOPLE, Data, build, check, keys_of, make
from tests.store.kill_points import acknowledged_until_killed
from tests.tiers import nightly_except

Step = Callable[[Store], object]
# each with what has happened to the store before
STEPS: dict[str, tuple[list[Step], Step]] = {
    "restrict": ([], lambda store: store.restrict([ANN])),
    "fit beside what is set aside": ([lambda store: store.restrict([ANN])], lambda store: build(store, DATA)),
    "release": (
        [lambda store: store.restrict([ANN]), lambda store: build(store, DATA)],
        lambda store: store.restricted([ANN]) and store.release([ANN]),
    ),
    "forget who is restricted": (
        [lambda store: store.restrict([ANN]), lambda store: build(store, DATA)],
        lambda store: store.forget([ANN]),
    ),
    "forget another": (
        [lambda store: store.restrict([ANN]), lambda store: build(store, DATA)],
        lambda store: store.forget([BOB]),
    ),
    "rectify": ([], lambda store: store.rectify([ANN])),
    "rectify who is restricted": (
        [lambda store: store.restrict([ANN, CLEO]), lambda store: build(store, DATA)],
        lambda store: store.rectify([ANN]),
    ),
    "rotate": ([lambda store: store.restrict([ANN])], lambda store: store.rotate_key()),
}
DATA = Data()


@dataclass(frozen=True)
class Life:
    """A store before and after a step, and what was seen of it."""

    store: Path
    kept: Path
    states: tuple[str, str]

    def go_back(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.kept, self.store)


def state(store: Store) -> str:
    """What a user of the store sees of its past, as one line."""
    aside = sorted((one.name, one.entry.digest) for one in store._ledger.aside())
    people = sorted(store.forgotten(PEOPLE)), sorted(store.restricted(PEOPLE))
    return json.dumps([keys_of(store), aside, people])


def live(folder: Path, before: list[Step], step: Step) -> Life:
    path, kept = folder / "store", folder / "kept"
    with make(path) as store:
        build(store, DATA)
        for one in before:
            one(store)
        first = state(store)
    shutil.copytree(path, kept)
    with Store.open(path) as store:
        step(store)
        return Life(path, kept, (first, state(store)))


@pytest.mark.parametrize("name", nightly_except(STEPS, "restrict"))
def test_a_step_that_is_killed_anywhere_is_whole_or_has_not_been(name: str, tmp_path: Path) -> None:
    before, step = STEPS[name]
    life = live(tmp_path, before, step)

    def work() -> Iterator[str]:
        with Store.open(life.store) as store:
            step(store)
            yield "done"

    for fatal in itertools.count(1):
        life.go_back()
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(life.store) as store:
            if name == "fit beside what is set aside":  # many small steps
                assert state(store) == life.states[1] or not acknowledged
            else:
                assert state(store) in life.states[1 if acknowledged else 0 :], f"killed before change {fatal}"
            check(store, DATA)
            step(store)  # as its caller does who has seen no answer
            assert state(store) == life.states[1]
            check(store, DATA)
        if survived:
            break
    assert fatal > 2, "the kills went past what they should hit"
