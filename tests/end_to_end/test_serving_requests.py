"""`on_forget` comes once: every listener hears of each request one time, by whichever door it came in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_s3t import S3T, DeletionHook, EnsembleModule
from lightning_s3t.store import Receipt, Store
from tests.people import ARGUMENTS, Classifier, People, PeopleData


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A store of its own for each test, since a forget cannot be undone."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


class Heard(Callback):
    """A callback that notes what it hears."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    def on_forget(self, receipt: Receipt) -> None:
        self.requests.append(receipt.request)


class HeardData(PeopleData):
    """A data module that notes what it hears."""

    def __init__(self) -> None:
        super().__init__(People.make())
        self.requests: list[int] = []

    def on_forget(self, receipt: Receipt) -> None:
        self.requests.append(receipt.request)


class Ask(Callback):
    """Makes a request after the first batch of a test, by a door of the test's choice."""

    def __init__(self, door: Callable[[list[str]], Any]) -> None:
        self._door = door

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._door(["user-1"])


def elsewhere(store: Path) -> Callable[[list[str]], Any]:
    """The door of another process: a store that is opened for the request alone."""

    def forget(people: list[str]) -> None:
        with Store.open(store) as opened:
            opened.forget(people)

    return forget


def run_test(served: pl.LightningModule, data: PeopleData, *callbacks: Callback) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.test(served, data, verbose=False)


def requests_of(served: EnsembleModule) -> list[int]:
    return [receipt.request for receipt in served.module.forgotten]


@pytest.mark.parametrize("door", ["served", "hook", "s3t", "another hook", "elsewhere"])
def test_every_callback_of_a_trainer_hears_of_a_request_once(store: Path, door: str) -> None:
    served, data, callback = EnsembleModule.from_store(store, Classifier()), HeardData(), Heard()
    hook, other, s3t = DeletionHook(store), DeletionHook(store), S3T(store, **ARGUMENTS)
    doors = {
        "served": served.forget,
        "hook": hook.forget,
        "s3t": s3t.forget,
        "another hook": other.forget,
        "elsewhere": elsewhere(store),
    }
    run_test(served, data, s3t, hook, other, callback, Ask(doors[door]))
    assert requests_of(served) == callback.requests == data.requests == [1]
    assert hook.poll() == other.poll() == []


def test_without_a_hook_the_served_models_own_requests_are_told(store: Path) -> None:
    served, data, callback = EnsembleModule.from_store(store, Classifier()), HeardData(), Heard()
    run_test(served, data, callback, Ask(served.forget))
    assert requests_of(served) == callback.requests == data.requests == [1]


def test_what_was_asked_before_a_listener_joined_is_no_news(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    served.forget(["user-1"])
    data, callback = HeardData(), Heard()
    run_test(served, data, DeletionHook(store), callback, Ask(lambda _: served.forget(["user-2"])))
    assert requests_of(served) == [1, 2]
    assert callback.requests == data.requests == [2]


@torch.no_grad()
def test_a_request_from_elsewhere_that_a_served_model_has_noticed_is_told_with_its_next(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    elsewhere(store)(["user-1"])
    served(torch.zeros(1, 8))
    served.forget(["user-2"])
    assert requests_of(served) == [1, 2]


def test_two_served_models_each_hear_of_their_requests_once(store: Path) -> None:
    first, second = EnsembleModule.from_store(store, Classifier()), EnsembleModule.from_store(store, Classifier())
    first.forget(["user-1"])
    second.forget(["user-2"])
    first.forget(["user-3"])
    assert requests_of(first) == [1, 2, 3]
    assert requests_of(second) == [1, 2]


def test_a_hook_without_a_trainer_returns_what_came_in_since_it_last_looked(store: Path) -> None:
    hook = DeletionHook(store)
    assert hook.poll() == []
    elsewhere(store)(["user-1"])
    assert [receipt.request for receipt in hook.poll()] == [1]
    assert hook.poll() == []


def test_a_listener_may_make_a_request_itself(store: Path) -> None:
    class Chain(Classifier):
        def on_forget(self, receipt: Receipt) -> None:
            super().on_forget(receipt)
            if receipt.request == 1:
                served.forget(["user-2"])

    served = EnsembleModule.from_store(store, Chain())
    served.forget(["user-1"])
    assert requests_of(served) == [1, 2]


def test_requests_of_several_threads_are_told_once_each_and_in_order(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(served.forget, ([f"user-{person}"] for person in range(8))))
    assert requests_of(served) == list(range(1, 9))


def test_the_served_model_has_taken_up_its_survivors_when_a_listener_hears(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    seen: list[bool] = []

    class Look(Callback):
        def on_forget(self, receipt: Receipt) -> None:
            units = {str(shard): str(unit) for shard, unit in served.survivors.items()}
            seen.append({shard: units.get(str(shard)) for shard in receipt.serving} == dict(receipt.serving))

    run_test(served, HeardData(), Look(), DeletionHook(store), Ask(elsewhere(store)))
    assert seen == [True]
