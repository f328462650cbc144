"""A store whose ledger is in PostgreSQL: it is what one in a folder is, and its folder says where the ledger lies."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.errors import ConfigurationError, StoreError, StoreMismatchError
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.store.ledgers.postgres import CHANNEL, PostgresLedger
from tests.postgres_server import shared_server
from tests.store.cut_connections import Proxy
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place, session

ANN, BOB, EVE = in_place(0, 0), in_place(1, 0), in_place(1, 1)
LATER = datetime.now(timezone.utc) + timedelta(hours=1)


@pytest.fixture
def address() -> str:
    return shared_server().new_address()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    opened = Proxy(shared_server().folder)
    yield opened
    opened.close()


def filled(path: Path, address: str | None, place: str | None = None, keys: Path | None = None) -> Store:
    store = Store.create(path, SETTINGS, ledger=address, snapshots=place, key=b"k" * 32, keys=keys)
    session(store).register(PEOPLE)
    for number, unit in enumerate(UNITS):
        build(store, unit, number)
    return store


def life(path: Path, address: str | None, place: str | None = None, keys: Path | None = None) -> list[Any]:
    """Something of everything that a store does; what its users see of it after each step."""
    checkpoint = path.parent / "last.ckpt"
    steps: list[Callable[[Store], Any]] = [
        lambda store: store.forget([ANN], request_id="ticket-7"),
        lambda store: store.forget([ANN], request_id="ticket-7"),
        lambda store: build(store, UNITS[0], 7.0, checkpoint),
        lambda store: store.restrict([BOB]),
        lambda store: store.schedule([EVE], LATER),
        lambda store: store.rotate_key(),
        lambda store: store.release([BOB]),
        lambda store: store.rectify([BOB]),
        lambda store: store.cancel([EVE]),
        lambda store: store.forget(["a stranger"], strict=False),
        lambda store: store.forget([in_place(0, 0, 1)]),
    ]
    seen = []
    filled(path, address, place, keys).close()
    for step in steps:
        with Store.open(path) as store:
            answer = step(store)
            tensors = {str(unit): store.load(unit)["w"].tolist() for unit in store.alive()}
            receipts = [replace(one, time="", chain="", versions={}) for one in store.receipts()]
            counts = len(store.forgotten(PEOPLE)), store.count_restricted(), len(store.pending())
            seen.append([type(answer).__name__, tensors, receipts, counts, sorted(map(str, store.set_aside()))])
            found = store.verify()
            assert found.passed, found.problems
    assert not checkpoint.exists()
    return seen


def test_a_store_on_postgres_lives_as_one_in_a_folder_does(tmp_path: Path, address: str) -> None:
    assert life(tmp_path / "database" / "store", address) == life(tmp_path / "folder" / "store", None)
    assert not (tmp_path / "database" / "store" / "ledger.db").exists()


def test_the_folder_says_where_the_ledger_is(tmp_path: Path, address: str) -> None:
    filled(tmp_path / "store", address).close()
    with Store.create(tmp_path / "store", SETTINGS) as again:
        assert len(again.alive()) == len(UNITS)
    with Store.create(tmp_path / "store", SETTINGS, ledger=address) as again:
        assert len(again.alive()) == len(UNITS)
    assert Store.newest_event(tmp_path / "store") == 0


def test_another_ledger_for_the_same_folder_is_refused(tmp_path: Path, address: str) -> None:
    filled(tmp_path / "store", address).close()
    Store.create(tmp_path / "other", SETTINGS).close()
    for store in ("store", "other"):
        with pytest.raises(StoreMismatchError, match="Leave the argument out"):
            Store.create(tmp_path / store, SETTINGS, ledger=shared_server().new_address())


def test_a_second_folder_with_the_same_ledger_is_refused(tmp_path: Path, address: str) -> None:
    filled(tmp_path / "store", address).close()
    with pytest.raises(StoreError, match="belongs to a folder other than"):
        Store.create(tmp_path / "second", SETTINGS, ledger=address)


def test_a_copy_of_the_folder_is_refused_until_somebody_says_that_it_is_the_only_one(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "store", address).close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with pytest.raises(StoreError, match="is a copy"):
        Store.open(tmp_path / "copy")
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setenv("LIGHTNING_S3T_LEDGER", shared_server().new_address())
    with pytest.raises(StoreError, match="is a copy"):
        Store.open(tmp_path / "copy")
    monkeypatch.setenv("LIGHTNING_S3T_LEDGER", address)
    for person in (ANN, BOB):
        with Store.open(tmp_path / "copy") as store:
            receipt = store.forget([person])
            assert isinstance(receipt, RequestRecord)
            assert receipt.erased_files > 0
            assert store.verify().passed
        monkeypatch.delenv("LIGHTNING_S3T_LEDGER", raising=False)


def test_a_strangers_folder_has_nobody_connect_to_a_server(tmp_path: Path, proxy: Proxy) -> None:
    """The password that libpq finds would go there."""
    asked = []
    proxy.cut_at(lambda message, before: bool(asked.append(message)), answered=False)
    Store.create(tmp_path / "mine", SETTINGS).close()
    (tmp_path / "mine" / "ledger.db").unlink()
    note = {"url": f"postgresql://s3t@/postgres?host={proxy.folder}", "schema": "s3t", "id": "0" * 32, "inode": 4711}
    for change in ({}, {"inode": None}, {"url": f"postgresql://s3t@/postgres?host={proxy.folder}#"}):
        (tmp_path / "mine" / "ledger.json").write_text(json.dumps({**note, **change}))
        for call in (Store.open, Store.newest_event, lambda path: Store.create(path, SETTINGS)):
            with pytest.raises(StoreError):
                call(tmp_path / "mine")
    assert not asked


def test_a_schema_with_other_tables_is_left_alone(tmp_path: Path, address: str) -> None:
    schema = address.partition("schema=")[2]
    with shared_server().connect() as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"CREATE TABLE {schema}.customers (name text)")
        with pytest.raises(StoreError, match="its tables are not those of a store"):
            Store.create(tmp_path / "store", SETTINGS, ledger=address)
        (count,) = connection.execute("SELECT COUNT(*) FROM pg_class WHERE relnamespace = %s::regnamespace", (schema,))
        assert count == (1,)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE RULE quiet AS ON INSERT TO {schema}.tombstones DO INSTEAD NOTHING",
        "CREATE TABLE {schema}.more (name text)",
        "DROP TABLE {schema}.marks",
        "DELETE FROM {schema}.tombstones",
        "UPDATE {schema}.artifacts SET as_of = 9",
        "UPDATE {schema}.notes SET value = '{{}}' WHERE name = 'settings'",
        "DELETE FROM {schema}.events",
    ],
)
def test_a_ledger_that_was_changed_is_not_opened(tmp_path: Path, address: str, change: str) -> None:
    with filled(tmp_path / "store", address) as store:
        store.forget([ANN])
    (tmp_path / "store" / "journal.jsonl").write_bytes(b"")  # so that it is not simply made good from there
    with shared_server().connect() as connection:
        connection.execute(change.format(schema=address.partition("schema=")[2]).encode())
    with pytest.raises(StoreError):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://s3t:secret@host/db", "has a password"),
        ("postgresql://s3t@host/db?password=secret", "has a password"),
        ("postgresql://s3t@host/db?schema=Big", "Expected postgresql://"),
        ("sqlite:///ledger.db", "Expected postgresql://"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_before_anything_is_made(
    tmp_path: Path, address: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Store.create(tmp_path / "store", SETTINGS, ledger=address)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_the_address_of_a_database_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (Store.open, lambda store: Store.create(store, SETTINGS)):
        with pytest.raises(ConfigurationError, match="give the folder as `store`"):
            call("postgresql://s3t@host/db")
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    address = f"postgresql://s3t@/db?host={tmp_path}"
    for call in (
        lambda: Store.create(tmp_path / "store", SETTINGS, ledger=address),
        lambda: Store.open(tmp_path / "store"),
    ):
        with pytest.raises(StoreError, match=r"cannot be used .* PGPASSWORD"):
            call()


def test_without_psycopg_the_error_says_what_to_install(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r'pip install "lightning-s3t\[postgres\]"'):
        Store.create(tmp_path / "store", SETTINGS, ledger=address)


def test_a_request_is_told_to_whoever_listens(tmp_path: Path, address: str) -> None:
    with filled(tmp_path / "store", address) as store, shared_server().connect() as listener:
        listener.execute(f"LISTEN {CHANNEL}".encode())
        store.forget([ANN])
        (heard,) = listener.notifies(timeout=10, stop_after=1)
    assert heard.payload == address.partition("schema=")[2]


def test_a_thread_that_has_ended_leaves_no_connection(tmp_path: Path, address: str) -> None:
    with filled(tmp_path / "store", address) as store, shared_server().connect() as connection:
        count = "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'lightning_s3t'"
        before = connection.execute(count).fetchone()
        for _ in range(20):
            thread = threading.Thread(target=lambda: store.request_number)
            thread.start()
            thread.join()
        for _ in range(100):
            after = connection.execute(count).fetchone()
            if after == before:
                break
            connection.execute("SELECT pg_sleep(0.05)")
        assert after == before


def test_a_store_on_postgres_has_no_floor(tmp_path: Path, address: str) -> None:
    with filled(tmp_path / "store", address) as store, store.building() as building:  # noqa: SIM117
        with pytest.raises(ConfigurationError, match="cannot have a closed-form head"):
            building.check_floor(FloorPart(layer="head", width=2, outputs=2, bits=8, target_step=0.1))


def test_an_error_that_is_passed_over_in_a_transaction_undoes_all_of_it(tmp_path: Path, address: str) -> None:
    """PostgreSQL answers a COMMIT after an error without an error."""
    with filled(tmp_path / "store", address) as store:
        ledger = store._ledger
        assert isinstance(ledger, PostgresLedger)

        def pass_over_an_error() -> None:
            with ledger.transaction():
                ledger.note({"a": "1"})
                for _ in range(2):
                    with contextlib.suppress(StoreError):
                        ledger._do("SELECT 1 / 0")

        with pytest.raises(StoreError, match="Nothing was changed"):
            pass_over_an_error()
        assert ledger.notes("a", "b") == {}


def test_a_connection_that_the_server_has_ended_is_made_again(tmp_path: Path, address: str) -> None:
    with filled(tmp_path / "store", address) as store, shared_server().connect() as connection:
        for use in (lambda: store.request_number, lambda: store.forget([ANN]), lambda: store.receipts()):
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'lightning_s3t'"
            )
            use()
        assert store.request_number == 1
        assert torch.equal(store.load(UNITS[-1])["w"], torch.full((4,), float(len(UNITS) - 1)))


def test_two_writers_at_once_are_one_after_the_other(tmp_path: Path, address: str) -> None:
    filled(tmp_path / "store", address).close()
    errors = []

    def forget(people: list[str]) -> None:
        try:
            with Store.open(tmp_path / "store") as store:
                for person in people:
                    store.forget([person])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=forget, args=(PEOPLE[start : start + 4],)) for start in (0, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with Store.open(tmp_path / "store") as store:
        assert store.request_number == 12
        assert store.forgotten(PEOPLE) == set(PEOPLE[:12])
        assert store.verify().passed


def test_a_thread_that_sees_a_request_later_than_another_has_lost_nothing(tmp_path: Path, address: str) -> None:
    with filled(tmp_path / "store", address) as store, ThreadPoolExecutor(8) as threads:
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                _ = store.request_number

        looking = [threads.submit(look) for _ in range(8)]
        try:
            for number in range(40):
                store.forget([f"stranger-{number}"], strict=False)
        finally:
            done.set()
        for one in looking:
            one.result()


def test_a_row_of_the_lock_that_is_missing_is_noticed(tmp_path: Path, address: str) -> None:
    with filled(tmp_path / "store", address) as store, shared_server().connect() as connection:
        connection.execute(f"DELETE FROM {address.partition('schema=')[2]}.store".encode())
        with pytest.raises(StoreError, match="is damaged"):
            store.forget([ANN])
