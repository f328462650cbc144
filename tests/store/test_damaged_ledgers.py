"""A ledger or a journal that says what the store has not written closes the store and changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.core.events import Event, event_digest
from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.backups import back_up, restore
from tests.store.people_store import build, in_place, session

FORGED: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("request", 2, "now", {}),
    ("request", 2, "now", {"tombstones": [["zz", 0, 0]]}),
    ("request", 2, "now", {"tombstones": 7}),
    ("schedule", None, "now", {"pending": [["00"]]}),
    ("damage", None, "now", {}),
    ("rotation", None, "now", {}),
    ("rotation", None, "now", {"layers": 1}),
    ("rotation", None, "now", {"layers": "2"}),
    ("merge", None, "now", {"into": 0, "shard": 2}),
    ("erasure", 10**30, "now", {}),
    ("erasure", "abc", "now", {}),
    ("erasure", None, "\ud800", {}),
    ("of a later version", None, "now", {}),
]


@pytest.mark.parametrize("event", FORGED)
def test_an_event_that_cannot_be_carried_out_closes_the_store_and_changes_nothing(
    path: Path, event: tuple[str, Any, str, dict[str, Any]]
) -> None:
    kind, request, time, body = event
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        position, previous = store._ledger.head()
        alive = set(store.alive())
    digest = event_digest(previous, position + 1, kind, request, time, body)
    journal = path / "journal.jsonl"
    kept = journal.read_bytes()
    with journal.open("a") as file:
        print(Event(position + 1, kind, request, time, body, digest).to_json(), file=file)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        Store.open(path)
    journal.write_bytes(kept)
    with Store.open(path) as store:
        assert store.forgotten([in_place(0, 0), in_place(0, 1)]) == {in_place(0, 0)}
        assert set(store.alive()) == alive


@pytest.mark.parametrize(
    ("statement", "look"),
    [
        ("UPDATE notes SET value = '{' WHERE name = 'settings'", Store.verify),
        ("UPDATE notes SET value = '{\"partition\": {\"shard\": 1}}' WHERE name = 'settings'", Store.verify),
        ("UPDATE notes SET value = 'x' WHERE name = 'key_layers'", Store.verify),
        ("UPDATE notes SET value = '0' WHERE name = 'key_layers'", Store.verify),
        ("UPDATE notes SET value = CAST(x'c97b' AS TEXT) WHERE name = 'settings'", Store.verify),
        ("UPDATE notes SET value = '{' WHERE name = 'options'", lambda store: store.options),
        ("UPDATE vault SET body = '{'", Store.alive),
        ("UPDATE artifacts SET name = replace(name, '/', '!')", Store.alive),
        ("UPDATE artifacts SET name = replace(name, '/', '!')", lambda store: store.forget([in_place(1, 1)])),
        ("UPDATE events SET body = '[]'", Store.receipts),
        ("UPDATE events SET body = '{}'", Store.receipts),
        ("UPDATE events SET body = '{\"revoked\": [7]}'", Store.revoked),
    ],
)
def test_a_value_that_is_not_what_was_written_is_an_error_of_ours(
    path: Path, statement: str, look: Callable[[Store], Any]
) -> None:
    with Store.open(path) as store:
        session(store).note_options({"sequences": []})
        store.forget([in_place(0, 0)])
        store._ledger.connection.execute(statement)

    def open_and_look() -> None:
        with Store.open(path) as store:
            look(store)

    with pytest.raises(StoreError):
        open_and_look()


def forget_and_be_killed(path: Path, person: str) -> None:
    """In a process of its own, which is killed before the write-ahead log is emptied."""
    child = os.fork()
    if child == 0:
        try:
            store = Store.open(path)
            store._ledger.clear_traces = lambda: None  # type: ignore[method-assign]
            store.forget([person])
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_ledger_restored_beside_the_log_of_another_does_not_open_until_it_is_restored_alone(
    path: Path, tmp_path: Path
) -> None:
    gone = {in_place(0, 0), in_place(1, 1)}
    with Store.open(path) as store:
        store.forget([f"stranger-{number}" for number in range(3000)], strict=False)  # tombstones on many pages
        back_up(path, tmp_path / "backup.db")
        store.forget([in_place(0, 0)])
    forget_and_be_killed(path, in_place(1, 1))
    shutil.copy(tmp_path / "backup.db", path / "ledger.db")
    for _ in range(2):
        with pytest.raises(StoreError, match="is inconsistent"):
            Store.open(path)
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert store.forgotten(gone) == gone
        assert store.verify().passed


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tombstones",
        "DELETE FROM events WHERE position = 2",
        "UPDATE artifacts SET as_of = 0",
    ],
)
def test_a_ledger_that_lacks_something_does_not_open(path: Path, statement: str) -> None:
    with Store.open(path) as store:
        receipt = store.forget([in_place(0, 0)])
        for text in receipt.revoked:
            build(store, UnitId.parse(text), 7.0)
        store.forget(["stranger"], strict=False)
        store._ledger.connection.execute(statement)
    with pytest.raises(StoreError, match="is inconsistent"):
        Store.open(path)


def test_a_bit_that_flips_in_the_settings_closes_the_store(path: Path) -> None:
    with Store.open(path) as store:
        connection = store._ledger.connection
        connection.execute(
            "UPDATE notes SET value = replace(value, '\"seed\": 0', '\"seed\": 1') WHERE name = 'settings'"
        )
    with pytest.raises(StoreError, match=r"settings .* are corrupted"):
        Store.open(path)
