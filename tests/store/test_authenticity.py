"""Somebody who can write the folder, and knows the format, but has no key: whatever is changed is found."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

from lightning_s3t.core.events import GENESIS, Event
from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.requests.journal import FILE, read_journal
from tests.store.people_store import in_place, make

SOON = datetime.now(timezone.utc) + timedelta(hours=1)
TOP = UnitId(0, (0,))
ANN, BOB = in_place(0, 0), in_place(1, 0)


@pytest.fixture
def store(path: Path) -> Path:
    """A store in which Ann and then Bob were forgotten."""
    with Store.open(path) as opened:
        opened.forget([ANN])
        opened.forget([BOB])
    return path


def database(store: Path) -> sqlite3.Connection:
    return sqlite3.connect(store / "ledger.db", isolation_level=None)


def write_history(store: Path, events: list[Event]) -> None:
    """Put another history in the place of ledger's and journal's, each event bound to the one before."""
    connection, digest, lines = database(store), GENESIS, []
    connection.execute("DELETE FROM events")
    for position, event in enumerate(events, start=1):
        made = replace(Event.after((position - 1, digest), event.kind, event.request, event.body), mac=event.mac)
        digest = made.digest
        lines.append(made.to_json() + "\n")
        forgotten = made.body.get("forgotten")
        values = (position, made.kind, made.request, made.time, json.dumps(made.body), digest, made.mac, forgotten)
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", values)
    connection.close()
    (store / FILE).write_text("".join(lines))


def cut_a_request_out(store: Path) -> None:
    later = [event for event in read_journal(store) if event.request != 1]
    body = {**later[0].body, "forgotten": 1}
    write_history(store, [replace(later[0], request=1, body=body), *(replace(event, request=1) for event in later[1:])])
    connection = database(store)
    connection.execute("DELETE FROM tombstones WHERE request = 1")
    connection.execute("UPDATE tombstones SET request = 1")


def cut_the_newest_request_off(store: Path) -> None:
    write = [event for event in read_journal(store) if event.request != 2]
    connection = database(store)
    connection.execute("DELETE FROM events WHERE request = 2")
    connection.execute("DELETE FROM tombstones WHERE request = 2")
    (store / FILE).write_text("".join(event.to_json() + "\n" for event in write))


def cut_a_scheduled_request_off(store: Path) -> None:
    with Store.open(store) as opened:
        opened.schedule([in_place(1, 1)], SOON)
    lines = (store / FILE).read_text().splitlines(keepends=True)
    (store / FILE).write_text("".join(lines[:-1]))
    connection = database(store)
    connection.execute("DELETE FROM events WHERE kind = 'schedule'")
    connection.execute("DELETE FROM pending")


def exchange_who_is_forgotten(store: Path) -> None:
    database(store).execute("UPDATE tombstones SET hash = ? WHERE request = 1", (b"\0" * 16,))


def make_a_tombstone_older(store: Path) -> None:
    database(store).execute("UPDATE tombstones SET request = 0 WHERE request = 2")


def move_everybody(store: Path) -> None:
    connection = database(store)
    (text,) = connection.execute("SELECT value FROM notes WHERE name = 'settings'").fetchone()
    text = text.replace('"seed": 0', '"seed": 1')
    digest = hashlib.sha256(text.encode()).hexdigest()
    connection.execute("UPDATE notes SET value = ? WHERE name = 'settings'", (text,))
    connection.execute("UPDATE notes SET value = ? WHERE name = 'settings_sha256'", (digest,))


def change_the_config(store: Path) -> None:
    database(store).execute("INSERT OR REPLACE INTO notes VALUES ('options', '{\"config\": \"another\"}')")


def change_the_start_of_the_head(store: Path) -> None:
    database(store).execute("INSERT OR REPLACE INTO notes VALUES ('base', ?)", ("ab" * 32,))


def make_up_an_event(store: Path) -> None:
    *_, last = read_journal(store)
    made = Event.after((last.position, last.digest), "damage", None, {"units": ["1/1"]})
    with (store / FILE).open("a") as file:
        file.write(replace(made, mac=last.mac).to_json() + "\n")


def make_a_score_better(store: Path) -> None:
    better = "CAST(replace(head, x'0a0a', x'0a392e300a') AS BLOB)"
    database(store).execute(f"UPDATE vault SET head = {better} WHERE length(body) > 0")


@pytest.mark.parametrize(
    "change",
    [
        cut_a_request_out,
        cut_the_newest_request_off,
        cut_a_scheduled_request_off,
        exchange_who_is_forgotten,
        make_a_tombstone_older,
        move_everybody,
        change_the_config,
        change_the_start_of_the_head,
        make_up_an_event,
        make_a_score_better,
    ],
)
def test_what_was_changed_without_the_key_does_not_open(store: Path, change: Callable[[Path], None]) -> None:
    Store.open(store).close()
    change(store)
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(store)


def lift_a_restriction(store: Path) -> None:
    database(store).execute("DELETE FROM marks WHERE kind = 'restricted'")


def make_a_restriction_older(store: Path) -> None:
    database(store).execute("UPDATE marks SET number = 0 WHERE kind = 'restricted'")


def forget_a_correction(store: Path) -> None:
    database(store).execute("DELETE FROM marks WHERE kind = 'rectified'")


def restrict_somebody_else(store: Path) -> None:
    database(store).execute("UPDATE marks SET hash = ? WHERE kind = 'restricted'", (b"\0" * 16,))


def make_a_set_aside_unit_newer(store: Path) -> None:
    database(store).execute("UPDATE set_aside SET as_of = 3")


@pytest.mark.parametrize(
    "change",
    [
        lift_a_restriction,
        make_a_restriction_older,
        forget_a_correction,
        restrict_somebody_else,
        make_a_set_aside_unit_newer,
    ],
)
def test_restrictions_and_corrections_that_were_changed_without_the_key_do_not_open(
    store: Path, change: Callable[[Path], None]
) -> None:
    with Store.open(store) as opened:
        opened.restrict([in_place(0, 1)])
        opened.rectify([in_place(1, 1)])
    Store.open(store).close()
    change(store)
    with pytest.raises(StoreError, match=r"with the store's key|is inconsistent"):
        Store.open(store)


def test_a_unit_that_is_set_aside_and_put_back_by_hand_does_not_open(path: Path) -> None:
    with Store.open(path) as opened:
        opened.restrict([ANN])
    connection = database(path)
    copied = "SELECT name, as_of, record, cells, mac FROM set_aside WHERE name = '0/0'"
    connection.execute(f"INSERT INTO artifacts {copied}")
    connection.execute("INSERT INTO cells VALUES ('0/0', '0/0')")
    connection.execute("DELETE FROM set_aside WHERE name = '0/0'")
    with pytest.raises(StoreError, match="must not serve"):
        Store.open(path)


def put_back(store: Path, before: Path, as_of: int) -> None:
    """Put a revoked unit back as it was, but for the number of the newest request when its data was chosen."""
    connection = database(store)
    connection.execute("ATTACH ? AS before", (str(before / "ledger.db"),))
    (record,) = connection.execute("SELECT record FROM before.artifacts WHERE name = ?", (str(TOP),)).fetchone()
    connection.execute(
        "INSERT INTO vault SELECT (SELECT MAX(id) + 1 FROM vault), head, body FROM before.vault WHERE id = ?", (record,)
    )
    connection.execute(
        "INSERT INTO artifacts SELECT name, ?, (SELECT MAX(id) FROM vault), cells, mac FROM before.artifacts "
        "WHERE name = ?",
        (as_of, str(TOP)),
    )
    connection.execute("INSERT INTO cells SELECT cell, artifact FROM before.cells WHERE artifact = ?", (str(TOP),))
    connection.execute(
        "INSERT INTO files SELECT owner, tag, (SELECT MAX(id) FROM vault) FROM before.files WHERE owner = ?",
        (str(TOP),),
    )
    shutil.copytree(before / "snapshots", store / "snapshots", dirs_exist_ok=True)


@pytest.mark.parametrize(("as_of", "message"), [(0, "must not serve"), (2, "the record of unit 0/0")])
def test_a_revoked_unit_that_is_put_back_does_not_open(
    filled: Path, store: Path, tmp_path: Path, as_of: int, message: str
) -> None:
    shutil.copytree(filled, tmp_path / "before")
    put_back(store, tmp_path / "before", as_of)
    with pytest.raises(StoreError, match=message):
        Store.open(store)


def test_a_revoked_unit_that_is_put_back_while_the_store_is_open_is_not_loaded(filled: Path, store: Path) -> None:
    with Store.open(store) as opened:
        put_back(store, filled, as_of=2)
        with pytest.raises(StoreError, match="with the store's key"):
            opened.load(TOP)
        assert "Changed without the store's key: the record of unit 0/0." in opened.verify().problems


def test_a_unit_of_another_store_with_the_same_key_does_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_S3T_KEY", "ab" * 32)
    for name in ("one", "other"):
        make(tmp_path / name).close()
    with Store.open(tmp_path / "one") as opened, opened.building() as building:
        building.drop([TOP])
    put_back(tmp_path / "one", tmp_path / "other", as_of=0)
    with pytest.raises(StoreError, match="the record of unit 0/0"):
        Store.open(tmp_path / "one")


def test_a_unit_of_a_copy_with_another_history_does_not_open(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    with Store.open(path) as opened:
        opened.forget([ANN])
    with Store.open(copy) as opened:
        opened.forget([BOB])  # its request 1, in which Ann's unit stays
        with opened.building() as building:
            building.drop([TOP])
            building.start_unit(TOP, "key").commit({"w": torch.zeros(4)}, {})
    put_back(path, copy, as_of=1)
    with pytest.raises(StoreError, match="the record of unit 0/0"):
        Store.open(path)


def test_an_old_key_writes_no_history_after_a_rotation(store: Path) -> None:
    with Store.open(store) as opened:
        opened.rotate_key()
        head = opened._ledger.head()
        stolen = Event.after(head, "damage", None, {"units": ["1/1"]})
        stolen = replace(stolen, mac=opened._backend.authenticator._event_mac(stolen, layers=1))
    with (store / FILE).open("a") as file:
        file.write(stolen.to_json() + "\n")
    with pytest.raises(StoreError, match="with the store's key"):
        Store.open(store)


def test_verification_names_the_events_that_the_key_has_not_written(store: Path) -> None:
    with Store.open(store) as opened:
        database(store).execute("UPDATE events SET mac = ? WHERE position = 1", ("0" * 64,))
        assert any("the first at position 1" in problem for problem in opened.verify().problems)


def test_a_rotated_store_is_whole(store: Path) -> None:
    with Store.open(store) as opened:
        opened.rotate_key()
        opened.forget([in_place(1, 1)])
        opened.rotate_key()
        assert opened.verify().passed
    with Store.open(store) as opened:
        assert opened.verify().passed


def test_a_whole_folder_that_is_rolled_back_is_told_by_a_receipt_kept_elsewhere_alone(
    path: Path, tmp_path: Path
) -> None:
    shutil.copytree(path, tmp_path / "before")
    with Store.open(path) as store:
        receipt = store.forget([ANN])
    with Store.open(tmp_path / "before") as rolled_back:
        assert rolled_back.verify().passed
        assert not rolled_back.has_given(receipt)


def test_verification_finds_a_record_that_was_changed(store: Path) -> None:
    with Store.open(store) as opened:
        database(store).execute('UPDATE vault SET body = \'["key", "{}"]\' WHERE length(body) > 0')
        assert any("does not match what was written" in problem for problem in opened.verify().problems)


@pytest.mark.parametrize(
    "change", [exchange_who_is_forgotten, make_a_tombstone_older, move_everybody, make_a_score_better]
)
def test_a_rotation_gives_no_code_to_what_was_changed_while_the_store_was_open(
    store: Path, change: Callable[[Path], None]
) -> None:
    with Store.open(store) as opened:
        change(store)
        with pytest.raises(StoreError, match="with the store's key"):
            opened.rotate_key()
        assert opened.verify().problems


def test_a_request_gives_no_code_to_a_history_that_was_cut_while_the_store_was_open(store: Path) -> None:
    with Store.open(store) as opened:
        cut_the_newest_request_off(store)
        with pytest.raises(StoreError, match="the end of its history does not match what was written"):
            opened.forget([in_place(1, 1)])


def test_a_fit_gives_no_code_to_settings_that_were_changed_while_the_store_was_open(store: Path) -> None:
    with Store.open(store) as opened, opened.building() as building:
        move_everybody(store)
        with pytest.raises(StoreError, match="the record of its settings or of its fits"):
            building.note_options({"sequences": []})
