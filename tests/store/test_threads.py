"""Threads of one process at one store: a server answers and forgets at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Receipt, Store
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
UNIT = UnitId(0, (0,))
PEOPLE = [f"user-{number}" for number in range(40)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", SETTINGS) as made:
        session(made).register(PEOPLE)
        session(made).start_unit(UNIT, "key").commit({"w": torch.ones(2)}, {})
        yield made


def test_requests_from_several_threads_are_all_carried_out(store: Store) -> None:
    with ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda person: store.forget([person]), PEOPLE))
    assert store.forgotten(PEOPLE) == set(PEOPLE)
    assert sorted(receipt.request for receipt in receipts) == list(range(1, len(PEOPLE) + 1))


def test_a_thread_that_serves_beside_one_that_forgets_is_answered_or_told(store: Store) -> None:
    def serve(_: int) -> bool:
        try:
            return torch.equal(store.load(UNIT)["w"], torch.ones(2))
        except RevokedError:
            return store.request_number > 0

    def forget(person: str) -> Receipt:
        return store.forget([person])

    with ThreadPoolExecutor(4) as threads:
        served = threads.map(serve, range(100))
        receipts = list(threads.map(forget, PEOPLE))
        assert all(served)
    assert len(receipts) == len(PEOPLE)
