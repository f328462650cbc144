"""Somebody who can write the folder, lacks the key, and changes what the codes may not cover: single columns and rows."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name
from lightning_s3t.store.keys.identities import KEY_FILE
from tests.store.people_store import UNITS, build, in_place, session

ANN, BOB, EVE = in_place(0, 0), in_place(1, 0), in_place(1, 1)
SOON = datetime.now(timezone.utc) + timedelta(hours=1)


def database(store: Path) -> sqlite3.Connection:
    return sqlite3.connect(store / "ledger.db", isolation_level=None)


def export(store: Store, unit: UnitId, *paths: Path) -> str:
    name, candidates = make_export_name(unit), store.candidates()
    store.export(name, unit, [candidates[part].snapshot for part in unit.lineage], dict.fromkeys(paths, b"secret"))
    return name


@pytest.fixture
def store(path: Path) -> Path:
    """A store in which Ann and then Bob were forgotten."""
    with Store.open(path) as opened:
        opened.forget([ANN])
        opened.forget([BOB])
    return path


@pytest.mark.parametrize("number", ["", 0])
def test_a_hash_that_takes_a_digit_of_its_request_is_found(store: Path, number: object) -> None:
    """So that the person's own hash is in no tombstone, and the next fit would train on them again."""
    connection = database(store)
    for hash_, request in connection.execute("SELECT hash, request FROM tombstones").fetchall():
        changed = (hash_ + str(request).encode(), number, hash_)
        connection.execute("UPDATE tombstones SET hash = ?, request = ? WHERE hash = ?", changed)
    with pytest.raises(
        StoreError, match=r"forgotten, restricted or corrected subjects does not match what was written|cannot be read"
    ):
        Store.open(store)


def test_a_unit_gets_no_number_of_a_request_that_is_yet_to_come(store: Path) -> None:
    """Or it could be put back after that request, and would not look older than it."""
    with Store.open(store) as opened:
        connection = database(store)
        connection.execute("UPDATE events SET request = 99 WHERE position = 2")
        with pytest.raises(StoreError, match="with the store's key"):
            build(opened, UNITS[0])
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(store)
    connection.execute("UPDATE events SET request = 1 WHERE position = 2")
    with Store.open(store) as opened:
        assert max(opened._ledger.ages().values()) <= opened.request_number


@pytest.mark.parametrize(
    "change",
    [
        "body = replace(body, 'exact', 'empirical') WHERE kind = 'request'",
        "body = replace(body, '\"subjects\":1', '\"subjects\":9') WHERE kind = 'request'",
        "body = replace(body, '\"bytes\":', '\"bytes\":1') WHERE kind = 'erasure'",
        "request = 2 WHERE kind = 'erasure'",
        "time = '2020-01-01T00:00:00.000+00:00' WHERE kind = 'request'",
    ],
)
def test_no_receipt_is_given_of_what_the_history_did_not_say(store: Path, change: str) -> None:
    with Store.open(store) as opened:
        database(store).execute(f"UPDATE events SET {change} AND position < 3")
        with pytest.raises(StoreError, match="of its history does not match what was written with the store's key"):
            opened.receipts()


def test_a_retry_is_given_no_receipt_that_somebody_has_changed(path: Path) -> None:
    with Store.open(path) as opened:
        opened.forget([ANN], request_id="ticket-1")
        opened.forget([BOB])
        changed = "body = replace(body, '\"forkserver\"', '\"none\"'), time = '2020-01-01T00:00:00.000+00:00'"
        database(path).execute(f"UPDATE events SET {changed} WHERE position = 1")
        with pytest.raises(StoreError, match="with the store's key"):
            opened.forget([ANN], request_id="ticket-1")


@pytest.mark.parametrize("after", [False, True])
def test_a_scheduled_request_that_is_made_to_look_like_something_else_is_found(store: Path, after: bool) -> None:
    with Store.open(store) as opened:
        opened.schedule([EVE], SOON)
        if after:
            opened.forget([in_place(0, 1)])
    connection = database(store)
    connection.execute("UPDATE events SET kind = 'damage' WHERE kind = 'schedule'")
    connection.execute("DELETE FROM pending")
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(store)


def test_a_cancellation_does_not_come_back_by_another_name(store: Path) -> None:
    with Store.open(store) as opened:
        opened.schedule([EVE], SOON)
        rows = database(store).execute("SELECT * FROM pending").fetchall()
        opened.cancel([EVE])
        opened.forget([in_place(0, 1)])
    connection = database(store)
    connection.execute("UPDATE events SET kind = 'damage' WHERE kind = 'cancellation'")
    connection.executemany("INSERT INTO pending VALUES (?, ?, ?)", rows)
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(store)


def test_a_stolen_old_key_moves_no_scheduled_request(store: Path) -> None:
    """With all that it takes to write the event anew as it might have been, but for what came after."""
    with Store.open(store) as opened:
        opened.schedule([EVE], SOON)
        old = opened._backend.authenticator
        (event,) = opened._ledger.events(kinds=("schedule",))
        before = opened._ledger.digest_at(event.position - 1)
        opened.rotate_key()
        late = event.body["pending"][0][1].replace("20", "29", 1)
        body = {**event.body, "pending": [[event.body["pending"][0][0], late, event.body["pending"][0][2]]]}
        made = type(event).after((event.position - 1, before or ""), "schedule", None, body)
        mac = old._event_mac(made, layers=1)
    connection = database(store)
    values = (made.time, made.to_json(), made.digest, mac, event.position)
    connection.execute("UPDATE events SET time = ?, body = ?, digest = ?, mac = ? WHERE position = ?", values)
    connection.execute("UPDATE events SET body = json_extract(body, '$.body') WHERE position = ?", (event.position,))
    connection.execute("UPDATE pending SET due = ?", (late,))
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(store)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM exports",
        """UPDATE exports SET cells = '["1/2"]'""",
        "UPDATE exports SET as_of = 2",
        "UPDATE exports SET name = '1/1:0123456789abcdef'",
    ],
)
def test_an_exported_copy_that_somebody_has_taken_out_of_reach_is_found(
    path: Path, tmp_path: Path, statement: str
) -> None:
    with Store.open(path) as opened:
        export(opened, UNITS[0], tmp_path / "copy.bin")
        opened.forget([BOB])
    database(path).execute(statement)
    with pytest.raises(StoreError, match="exported copies"):
        Store.open(path)


def test_an_exported_copy_that_a_changed_request_is_said_to_have_erased_is_found(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as opened:
        name = export(opened, UNITS[0], tmp_path / "copy.bin")
        opened.restrict([BOB])
        opened.release([BOB])
    connection = database(path)
    connection.execute("UPDATE events SET body = json_set(body, '$.exports', json_array(?)) WHERE request = 1", (name,))
    connection.execute("DELETE FROM exports")
    with pytest.raises(StoreError, match="exported copies"):
        Store.open(path)


def test_the_list_of_exported_copies_cannot_be_put_back_to_what_it_was(path: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(path, tmp_path / "old"))
    with Store.open(path) as opened:
        export(opened, UNITS[0], tmp_path / "copy.bin")
        opened.forget([BOB])
    connection = database(path)
    notes = database(old).execute("SELECT name, value FROM notes WHERE name LIKE '%mac'").fetchall()
    for name, value in notes:
        if name != "head_mac" and name != "tombstones_mac":
            connection.execute("UPDATE notes SET value = ? WHERE name = ?", (value, name))
    connection.execute("UPDATE events SET kind = 'damage' WHERE kind = 'export'")
    connection.execute("DELETE FROM exports")
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(path)


def test_an_exported_copy_that_a_restored_ledger_does_not_know_is_named_all_the_same(
    path: Path, tmp_path: Path
) -> None:
    backup = (path / "ledger.db").read_bytes()
    with Store.open(path) as opened:
        name = export(opened, UNITS[0], tmp_path / "copy.bin")
    (path / "ledger.db").write_bytes(backup)
    with Store.open(path) as opened:
        assert opened.exports() == [name]
        assert opened.forget([in_place(UNITS[0].shard, UNITS[0].prefix[0])]).exports == (name,)
        assert opened.verify().passed


def test_a_rotation_takes_no_key_that_somebody_has_laid_ready(store: Path) -> None:
    """Who has stolen the key puts one of their own behind it, to have the next one too."""
    planted = b"p" * 32
    (store / KEY_FILE).write_bytes((store / KEY_FILE).read_bytes() + planted)
    with Store.open(store) as opened:
        opened.rotate_key()
        opened.rotate_key()
        assert opened.forgotten([ANN, EVE]) == {ANN}
    assert planted not in (store / KEY_FILE).read_bytes()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE UNIQUE INDEX one ON tombstones (substr(cell, 1, 0)) WHERE request > 2",  # then nobody is buried, silently
        "DROP INDEX tombstones_by_cell",
        "CREATE TABLE more (x)",
        "ALTER TABLE pending ADD COLUMN late TEXT GENERATED ALWAYS AS (due || 'x') VIRTUAL",
        "CREATE VIRTUAL TABLE more USING fts5(x)",
    ],
)
def test_a_ledger_of_another_form_is_refused(store: Path, statement: str) -> None:
    database(store).execute(statement)
    with pytest.raises(StoreError, match="Expected only the tables and indices of a store"):
        Store.open(store)


def test_a_ledger_that_was_put_into_another_journal_mode_leaves_no_trace(store: Path) -> None:
    """Without a write-ahead log, SQLite removes a journal of what was there before, and does not overwrite it."""
    assert database(store).execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    with Store.open(store) as opened:
        assert opened._ledger.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)  # type: ignore[attr-defined]


def test_verification_names_a_checkpoint_that_somebody_has_taken_off_the_list(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as opened:
        build(opened, UNITS[0], 0, tmp_path / "first.ckpt", tmp_path / "last.ckpt")
        build(opened, UNITS[1], 0, tmp_path / "last.ckpt")  # over what the one before wrote: it is listed once
        assert opened.verify().passed
        before = database(path).execute("SELECT owner, tag FROM files WHERE owner = ?", (str(UNITS[0]),)).fetchall()
        (tag,) = [row[1] for row in before if row[1] == opened._ledger._tag(str(tmp_path / "first.ckpt"))]  # type: ignore[attr-defined]
        database(path).execute("DELETE FROM files WHERE tag = ?", (tag,))
        (problem,) = opened.verify().problems
    assert "first.ckpt was written by unit 0/0 but is not registered with it" in problem


@pytest.mark.parametrize("depth", [150, 300, 900, 960, 990, 1000, 5000])
def test_an_event_of_many_depths_is_an_error_of_ours(store: Path, depth: int) -> None:
    deep = '{"x":' + "[" * depth + "]" * depth + "}"
    database(store).execute("UPDATE events SET body = ? WHERE position = 1", (deep,))
    try:
        with Store.open(store) as opened:
            assert opened.verify().problems
            with pytest.raises(StoreError):
                opened.receipts()
            session(opened)
    except StoreError:
        pass
