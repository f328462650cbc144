"""The chain of events, its mirror, and what a restored backup of the ledger leads to."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.core.events import GENESIS, Event, first_break
from lightning_s3t.errors import RevokedError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.requests.journal import FILE, read_journal
from tests.store.backups import back_up, restore
from tests.store.people_store import build, in_place, make

SOON = datetime.now(timezone.utc) + timedelta(hours=1)


def events_of(store: Store) -> list[Event]:
    return list(store._ledger.events())


def test_each_event_is_bound_to_the_one_before(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store.forget([in_place(1, 2)])
        events = events_of(store)
    assert [event.kind for event in events] == ["request", "erasure", "request", "erasure"]
    assert events[0].follows(GENESIS)
    assert all(event.follows(before.digest) for before, event in itertools.pairwise(events))
    assert first_break(events) is None


def test_the_journal_has_every_event_when_forget_returns(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        assert list(read_journal(path)) == events_of(store)


def test_a_receipt_names_its_place_in_the_chain(path: Path) -> None:
    with Store.open(path) as store:
        receipt = store.forget([in_place(0, 0)])
        assert store.chain_digest(receipt.position) == receipt.chain
        store.forget([in_place(1, 0)])
        assert store.receipts()[0] == receipt
        assert store.chain_digest(receipt.position) == receipt.chain
        assert store.chain_digest(99) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET time = '2020-01-01' WHERE position = 1",
        "UPDATE events SET request = 7 WHERE position = 1",
        "UPDATE events SET kind = 'damage' WHERE position = 1",
        "UPDATE events SET body = '{}' WHERE position = 1",
        "UPDATE events SET body = 'no json' WHERE position = 1",
        "DELETE FROM events WHERE position = 1",
    ],
)
def test_a_changed_event_breaks_the_chain(path: Path, statement: str) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store.forget([in_place(1, 0)])
        store._ledger.connection.execute(statement)
        assert first_break(events_of(store)) == 1


def test_a_restored_backup_of_the_ledger_brings_nobody_back(path: Path, tmp_path: Path) -> None:
    gone = in_place(0, 1)
    with Store.open(path) as store:
        store.forget([in_place(1, 0)])
        back_up(path, tmp_path / "backup.db")
        receipt = store.forget([gone])
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert store.request_number == 2
        assert store.forgotten([gone]) == {gone}
        assert store.receipts()[1] == receipt
        for unit in receipt.revoked:
            with pytest.raises(RevokedError):
                store.load(UnitId.parse(unit))
        assert store.verify().passed
        assert store.forget([gone]).already_forgotten == 1


def test_units_that_were_trained_before_the_restored_requests_are_revoked_though_their_files_came_back(
    path: Path, tmp_path: Path
) -> None:
    with Store.open(path) as store:
        back_up(path, tmp_path / "backup.db")
        shutil.copytree(path / "snapshots", tmp_path / "snapshots")
        receipt = store.forget([in_place(0, 1)])
    restore(path, tmp_path / "backup.db")
    shutil.copytree(tmp_path / "snapshots", path / "snapshots", dirs_exist_ok=True)
    with Store.open(path) as store:
        assert not {str(unit) for unit in store.alive()} & set(receipt.revoked)
        assert len(list((path / "snapshots").iterdir())) == len(store.alive())
        assert store.verify().passed


def test_units_trained_after_the_request_are_not_revoked_by_it_again(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        receipt = store.forget([in_place(0, 0)])
        for text in receipt.revoked:
            build(store, UnitId.parse(text), 7.0)
        back_up(path, tmp_path / "backup.db")
        store.forget([in_place(1, 0)])
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert set(receipt.revoked) <= {str(unit) for unit in store.alive()}
        assert store.verify().passed


def test_a_line_that_a_crash_has_torn_is_written_again(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
    data = (path / FILE).read_bytes()
    (path / FILE).write_bytes(data[:-20])
    with Store.open(path) as store:
        assert list(read_journal(path)) == events_of(store)
    assert (path / FILE).read_bytes() == data


def test_a_journal_that_lags_behind_is_brought_up(path: Path) -> None:
    with Store.open(path) as store:
        for number in range(3):
            store.forget([in_place(0, number)])
    lines = (path / FILE).read_bytes().splitlines(keepends=True)
    (path / FILE).write_bytes(b"".join(lines[:2]))
    Store.open(path).close()
    assert (path / FILE).read_bytes() == b"".join(lines)


def test_a_long_request_is_found_at_the_journals_end(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([f"stranger-{number}" for number in range(3000)], strict=False)
        store.forget([in_place(0, 0)])
    assert len((path / FILE).read_bytes()) > 100_000
    with Store.open(path) as store:
        assert list(read_journal(path)) == events_of(store)


def lose(path: Path) -> None:
    (path / FILE).unlink()


def change(path: Path) -> None:
    text = (path / FILE).read_text()
    (path / FILE).write_text(text.replace('"digest":"', '"digest":"0', 1))


def scribble(path: Path) -> None:
    (path / FILE).write_bytes(b"\xff\xfe nothing\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose, r"has lost its journal\.jsonl"),
        (change, "disagree about event 1"),
        (scribble, r"journal\.jsonl is damaged at its end: .* is not an event of a store"),
    ],
)
def test_a_journal_that_tells_something_else_closes_the_store(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "store"
    with make(path) as store:
        store.forget(["stranger"], strict=False)  # revokes files or not: here one event alone
        count = len(events_of(store))
    if harm is change:
        lines = (path / FILE).read_text().splitlines(keepends=True)
        (path / FILE).write_text("".join(lines[:1]))
        assert count >= 1
    harm(path)
    with pytest.raises(StoreError, match=message):
        Store.open(path)


def test_the_journal_of_another_store_closes_the_store(path: Path, tmp_path: Path) -> None:
    with make(tmp_path / "other") as other:
        other.forget([in_place(1, 1)])
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
    shutil.copy(tmp_path / "other" / FILE, path / FILE)
    with pytest.raises(StoreError, match="disagree"):
        Store.open(path)


def test_a_longer_journal_of_another_store_is_not_carried_out(path: Path, tmp_path: Path) -> None:
    with make(tmp_path / "other") as other:
        for number in range(3):
            other.forget([in_place(1, number)])
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        alive = set(store.alive())
    kept = (path / FILE).read_bytes()
    shutil.copy(tmp_path / "other" / FILE, path / FILE)
    with pytest.raises(StoreError, match="disagree"):
        Store.open(path)
    (path / FILE).write_bytes(kept)
    with Store.open(path) as store:
        assert set(store.alive()) == alive


def test_an_emptied_journal_is_written_anew(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
    data = (path / FILE).read_bytes()
    (path / FILE).write_bytes(b"")
    Store.open(path).close()
    assert (path / FILE).read_bytes() == data


def test_nothing_in_the_chain_names_a_person_or_a_snapshot(path: Path) -> None:
    person = in_place(0, 0)
    with Store.open(path) as store:
        digests = [record.snapshot for record in store.alive().values()]
        store.forget([person])
    text = (path / FILE).read_text()
    assert person not in text
    assert not [digest for digest in digests if digest in text]


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
        assert list(read_journal(path)) == list(store._ledger.events())
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


def test_an_event_of_another_type_breaks_the_chain(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store._ledger.connection.execute("UPDATE events SET time = x'00' WHERE position = 1")
        assert any("broken at position 1" in problem for problem in store.verify().problems)
