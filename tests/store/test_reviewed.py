"""What a hostile reviewer found in the store: careless callers, restored ledgers, damaged values, races."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import DataError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store, verification
from lightning_s3t.store.chain import Event, _digest, head, read_events
from lightning_s3t.store.journal import read_journal
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Ledger
from tests.store.people_store import SETTINGS, build, in_place, make
from tests.store.test_chain import back_up, restore

SOON = datetime.now(timezone.utc) + timedelta(hours=1)
BANDS: dict[str, Any] = {"partition": {"shards": 1, "slices": 3, "seed": 0, "bands": [2, 1]}}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    make(path).close()
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """A store in which every unit is built."""
    return Path(shutil.copytree(template, tmp_path / "store"))


@pytest.mark.parametrize("subjects", ["user-17", b"17", bytearray(b"17"), 17, None, 3.5, [10**5000], [["a"]]])
def test_what_is_no_collection_of_ids_is_refused_and_nobody_else_is_forgotten(tmp_path: Path, subjects: Any) -> None:
    with Store.create(tmp_path / "store", SETTINGS, register=False) as store:
        with pytest.raises(DataError):
            store.forget(subjects, strict=False)
        with pytest.raises(DataError):
            store.schedule(subjects, SOON, strict=False)
        assert store.request_number == 0
        assert store.pending() == []


def test_who_asked_before_the_first_fit_is_forgotten_where_their_band_puts_them(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", BANDS) as store:
        store.schedule(["ann"], SOON, strict=False)
        store.register({"ann": 1, "bob": 0})
        build(store, UnitId(0, (2,)))  # the slice of the second band: trained on Ann
        receipt = store.forget_due(SOON)
        assert receipt is not None
        assert receipt.revoked == ("0/2",)
        assert not store.alive()


def test_a_receipt_of_what_was_due_says_who_was_unknown(path: Path) -> None:
    with Store.open(path) as store:
        store.schedule(["stranger", in_place(0, 0)], SOON, strict=False)
        receipt = store.forget_due(SOON)
        assert receipt is not None
        assert (receipt.subjects, receipt.unknown) == (2, 1)


@pytest.mark.parametrize("position", [0, -1, 3, 10**30])
def test_there_is_no_digest_where_there_is_no_event(path: Path, position: int) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        assert store.chain_digest(position) is None


@pytest.mark.parametrize("statement", ["UPDATE events SET body = '{}'", "DELETE FROM events"])
def test_a_receipt_does_not_hold_against_a_history_that_was_changed_before_it(path: Path, statement: str) -> None:
    with Store.open(path) as store:
        receipt = store.forget([in_place(0, 0)])
        assert store.chain_digest(receipt.position) == receipt.chain
        store._ledger.connection.execute(f"{statement} WHERE position = 1")
        assert store.chain_digest(receipt.position) is None


def test_a_restored_ledger_knows_what_was_scheduled_since(path: Path, tmp_path: Path) -> None:
    back_up(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        store.schedule([in_place(0, 0)], SOON + timedelta(days=1))
        store.schedule([in_place(0, 0), in_place(1, 1)], SOON)
        pending = store.pending()
        store.schedule([in_place(1, 0)], SOON)
        store.forget([in_place(1, 0)])
        assert list(read_journal(path)) == list(read_events(store._ledger))
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert store.pending() == pending
        assert store.verify().passed
        store.rotate_key()
        store.forget_due(SOON)
        assert store.forgotten([in_place(0, 0), in_place(1, 0), in_place(1, 1)]) == {
            in_place(0, 0),
            in_place(1, 0),
            in_place(1, 1),
        }


FORGED: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("request", 2, "now", {}),
    ("request", 2, "now", {"tombstones": [["zz", 0, 0]]}),
    ("request", 2, "now", {"tombstones": 7}),
    ("schedule", None, "now", {"pending": [["00"]]}),
    ("damage", None, "now", {}),
    ("rotation", None, "now", {}),
    ("rotation", None, "now", {"layers": 1}),
    ("rotation", None, "now", {"layers": "2"}),
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
        position, previous = head(store._ledger.connection)
        alive = set(store.alive())
    digest = _digest(previous, position + 1, kind, request, time, body)
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


def test_who_is_forgotten_is_told_while_another_process_rotates_the_key(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        store.forget([in_place(0, 0)])
        present, rotations = Ledger.present, [other]

        def rotated_before(self: Ledger, *args: Any) -> set[bytes]:
            if rotations and self is store._ledger:
                rotations.pop().rotate_key()
            return present(self, *args)

        monkeypatch.setattr(Ledger, "present", rotated_before)
        assert store.forgotten([in_place(0, 0), in_place(0, 1)]) == {in_place(0, 0)}
        assert not rotations


def test_a_thread_that_looks_does_not_change_the_keys_of_one_that_rotates(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(path) as store, ThreadPoolExecutor(1) as threads:
        store.forget([in_place(0, 0)])
        apply = Keyring.apply_rotation

        def looked_at_after(self: Keyring, *args: Any) -> None:
            apply(self, *args)
            assert threads.submit(store.forgotten, [in_place(0, 0)]).result() == {in_place(0, 0)}

        monkeypatch.setattr(Keyring, "apply_rotation", looked_at_after)
        store.rotate_key()
        assert [event.body for event in read_events(store._ledger) if event.kind == "rotation"] == [{"layers": 2}]
        assert store.verify().passed


def test_no_page_keeps_an_id_under_the_key_before(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        people = [f"person-{number}" for number in range(20_000)]
        store.register(people)
        old = {store._keyring.hash(person) for person in people}
        store.rotate_key()
        data = b"".join(file.read_bytes() for file in store.path.glob("ledger.db*"))
        assert not old & {data[start : start + 16] for start in range(len(data))}


def test_verification_beside_requests_and_rotations_raises_no_alarm(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        other.forget([in_place(0, 0)])
        other.rotate_key()
        assert store.verify().passed
        tombstones = verification._tombstones

        def asked_before(*args: Any) -> Any:
            other.forget([in_place(1, 1)])
            return tombstones(*args)

        monkeypatch.setattr(verification, "_tombstones", asked_before)
        monkeypatch.setattr(Ledger, "truncate_log", lambda *args: None)  # waits for the reader
        assert store.verify().passed


@pytest.mark.parametrize(
    ("statement", "look"),
    [
        ("UPDATE meta SET value = '{' WHERE name = 'settings'", Store.verify),
        ("UPDATE meta SET value = '{\"partition\": {\"shard\": 1}}' WHERE name = 'settings'", Store.verify),
        ("UPDATE meta SET value = 'x' WHERE name = 'key_layers'", Store.verify),
        ("UPDATE meta SET value = '{' WHERE name = 'options'", lambda store: store.options),
        ("UPDATE units SET provenance = '{'", Store.alive),
        ("UPDATE units SET unit = replace(unit, '/', '!')", Store.alive),
        ("UPDATE units SET unit = replace(unit, '/', '!')", lambda store: store.forget([in_place(1, 1)])),
        ("UPDATE events SET body = '[]'", Store.receipts),
        ("UPDATE events SET body = '{}'", Store.receipts),
        ("UPDATE events SET body = '{\"revoked\": [7]}'", Store.revoked),
    ],
)
def test_a_value_that_is_not_what_was_written_is_an_error_of_ours(
    path: Path, statement: str, look: Callable[[Store], Any]
) -> None:
    with Store.open(path) as store:
        store.options = {"sequences": []}
        store.forget([in_place(0, 0)])
        store._ledger.connection.execute(statement)

    def open_and_look() -> None:
        with Store.open(path) as store:
            look(store)

    with pytest.raises(StoreError):
        open_and_look()


@pytest.mark.parametrize("body", ["{}", "[]", "7", '{"tombstones": 7}', '{"tombstones": [["zz", 0, 0]]}'])
def test_verification_of_a_request_that_nobody_can_read_names_it(path: Path, body: str) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store._ledger.connection.execute("UPDATE events SET body = ? WHERE position = 1", (body,))
        assert "The request of event 1 cannot be read." in store.verify().problems
