"""Threads of one process at one store: a server answers and forgets at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import RevokedError, StoreError
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


CLOSE_WHILE_READING = """
import sys, threading
from pathlib import Path
from lightning_s3t.errors import StoreError
from lightning_s3t.store import Store

for _ in range(10):
    store, begun, said = Store.open(Path(sys.argv[1])), threading.Event(), []

    def read():
        try:
            while True:
                store._ledger.connection.execute("SELECT hash, band FROM subjects").fetchall()
                begun.set()
        except StoreError as error:
            said.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    store.close()
    thread.join()
    assert "closed" in said[0], said
"""


def test_a_store_that_is_closed_while_a_thread_reads_ends_the_thread_and_not_the_process(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as made:
        session(made).register([f"user-{number}" for number in range(20_000)])
    command = [sys.executable, "-c", CLOSE_WHILE_READING, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_store_that_is_closed_is_not_used_any_more(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.forget(["user-1"])
