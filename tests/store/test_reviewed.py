"""What a hostile reviewer found in the store: careless callers, restored ledgers, damaged values, races."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.errors import DataError, RevokedError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Receipt, Store, verification
from lightning_s3t.store.chain import Event, _digest, head, read_events
from lightning_s3t.store.journal import read_journal
from lightning_s3t.store.keyring import Keyring
from lightning_s3t.store.ledger import Ledger
from tests.store.backups import back_up, restore
from tests.store.people_store import SETTINGS, build, in_place, make

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
        ("UPDATE meta SET value = '0' WHERE name = 'key_layers'", Store.verify),
        ("UPDATE meta SET value = CAST(x'c97b' AS TEXT) WHERE name = 'settings'", Store.verify),
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


def forget_and_be_killed(path: Path, person: str) -> None:
    """In a process of its own, which is killed before the write-ahead log is emptied."""
    child = os.fork()
    if child == 0:
        try:
            store = Store.open(path)
            store._ledger.truncate_log = lambda: None  # type: ignore[method-assign]
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
        with pytest.raises(StoreError, match="not of one piece"):
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
        "UPDATE units SET as_of = 0",
    ],
)
def test_a_ledger_that_lacks_something_does_not_open(path: Path, statement: str) -> None:
    with Store.open(path) as store:
        receipt = store.forget([in_place(0, 0)])
        for text in receipt.revoked:
            build(store, UnitId.parse(text), 7.0)
        store.forget(["stranger"], strict=False)
        store._ledger.connection.execute(statement)
    with pytest.raises(StoreError, match="not of one piece"):
        Store.open(path)


def test_an_empty_folder_where_a_disk_was_is_no_damage(path: Path) -> None:
    with Store.open(path) as store:
        store.save_base({"w": torch.zeros(2)})
        alive = set(store.alive())
        (path / "snapshots").rename(path.parent / "disk")
        (path / "snapshots").mkdir()
        for look in (store.verify, store.take_out_damaged):
            with pytest.raises(StoreError, match=r"is empty\. If it lies on a disk of its own, mount it"):
                look()
        (path / "snapshots").rmdir()
        (path.parent / "disk").rename(path / "snapshots")
        assert store.verify().passed
        assert set(store.alive()) == alive


@pytest.mark.parametrize("end", ["abandoned", "committed"])
def test_a_file_registered_too_late_is_refused(path: Path, tmp_path: Path, end: str) -> None:
    with Store.open(path) as store:
        attempt = store.start_unit(UnitId(0, (0,)), "key")
        attempt.abandon() if end == "abandoned" else attempt.commit({"w": torch.ones(1)}, {})
        with pytest.raises(RevokedError, match="has ended"):
            attempt.register_file(tmp_path / "late.ckpt")


def test_an_abandoned_attempt_without_files_leaves_nothing(path: Path) -> None:
    with Store.open(path) as store:
        store.start_unit(UnitId(0, (0,)), "the key of an attempt").abandon()
        assert not [file for file in path.glob("ledger.db*") if b"the key of an attempt" in file.read_bytes()]


def test_a_receipt_that_says_something_twice_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        text = store.forget([in_place(0, 0)]).to_json()
    with pytest.raises(StoreError, match="twice"):
        Receipt.from_json(text.replace('"subjects": 1', '"subjects": 9, "subjects": 1'))


def test_receipts_since_a_request(path: Path) -> None:
    with Store.open(path) as store:
        for number in range(3):
            store.forget([in_place(0, number)])
        assert store.receipts(after=1) == store.receipts()[1:]
        assert store.receipts(after=3) == []


def test_an_event_of_another_type_breaks_the_chain(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store._ledger.connection.execute("UPDATE events SET time = x'00' WHERE position = 1")
        assert any("broken at position 1" in problem for problem in store.verify().problems)
