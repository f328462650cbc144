"""Requests for later, and stores that keep no registry."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import ConfigurationError, StoreError, StoreMismatchError, UnknownSubjectError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.backups import back_up, restore
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place, make, session

SOON = datetime.now(timezone.utc) + timedelta(hours=1)
LATER = SOON + timedelta(days=1)
ANN, BOB = in_place(0, 0), in_place(1, 1)
BANDS: dict[str, Any] = {"partition": {"shards": 1, "slices": 3, "seed": 0, "bands": [2, 1]}}


@pytest.fixture
def store(path: Path) -> Store:
    return Store.open(path)


def test_nothing_happens_before_the_time(store: Store) -> None:
    assert store.schedule([ANN, BOB], SOON) == 2
    assert store.forget_due() is None
    assert store.request_number == 0
    assert set(store.alive()) == set(UNITS)
    assert store.pending() == [(SOON.isoformat(timespec="milliseconds"), 2)]


def test_what_is_due_is_carried_out_as_one_request(store: Store) -> None:
    store.schedule([ANN], SOON)
    store.schedule([BOB], LATER)
    receipt = store.forget_due(SOON)
    assert receipt is not None
    assert (receipt.request, receipt.subjects, receipt.unknown) == (1, 1, 0)
    assert store.forgotten([ANN, BOB]) == {ANN}
    assert len(store.pending()) == 1
    assert store.forget_due(LATER) is not None
    assert store.forgotten([ANN, BOB]) == {ANN, BOB}
    assert store.pending() == []
    assert store.forget_due(LATER) is None


def test_it_reaches_what_forgetting_at_once_reaches(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "other")
    store.schedule([ANN], SOON)
    with Store.open(tmp_path / "other") as other:
        now, later = other.forget([ANN]), store.forget_due(SOON)
    assert later is not None
    assert (later.revoked, later.serving, later.erased_files) == (now.revoked, now.serving, now.erased_files)


def test_opening_the_store_carries_out_what_has_become_due(store: Store) -> None:
    store.schedule([ANN], datetime.now(timezone.utc) - timedelta(seconds=1))
    with Store.open(store.path) as opened:
        assert opened.forgotten([ANN]) == {ANN}
        assert opened.verify().passed


def test_of_two_times_the_earlier_counts(store: Store) -> None:
    store.schedule([ANN], SOON)
    store.schedule([ANN], LATER)
    assert store.forget_due(SOON) is not None
    store.schedule([BOB], LATER)
    store.schedule([BOB], SOON)
    assert store.forget_due(SOON) is not None


def test_forgetting_at_once_takes_the_time_back(store: Store) -> None:
    store.schedule([ANN], SOON)
    store.forget([ANN])
    assert store.pending() == []


def test_who_is_forgotten_already_is_not_noted(store: Store) -> None:
    store.forget([ANN])
    assert store.schedule([ANN], SOON) == 0


def test_times_of_all_zones_are_compared_as_times(store: Store) -> None:
    east = SOON.astimezone(timezone(timedelta(hours=9)))
    store.schedule([ANN], east)
    assert store.forget_due(SOON - timedelta(seconds=1)) is None
    assert store.forget_due(SOON.astimezone(timezone(timedelta(hours=-7)))) is not None


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        store.schedule([ANN], datetime(2030, 1, 1))


def test_unknown_subjects_are_refused_unless_they_are_allowed(store: Store) -> None:
    with pytest.raises(UnknownSubjectError):
        store.schedule(["stranger"], SOON)
    store.schedule(["stranger"], SOON, strict=False)
    store.forget_due(SOON)
    assert store.forgotten(["stranger"]) == {"stranger"}


def test_a_scheduled_request_survives_a_rotation_of_the_key(store: Store) -> None:
    store.schedule([ANN], SOON)
    store.rotate_key()
    store.forget_due(SOON)
    assert store.forgotten([ANN]) == {ANN}


def test_a_clock_that_goes_backwards_changes_no_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(1999, 1, 1, tzinfo=timezone.utc)

    store.forget([ANN])
    monkeypatch.setattr("lightning_s3t.core.events.datetime", Backwards)
    second = store.forget([BOB])
    assert second.time.startswith("1999")
    assert [receipt.request for receipt in store.receipts()] == [1, 2]
    assert store.verify().passed


def test_without_a_registry_nothing_is_stored_per_subject(tmp_path: Path) -> None:
    with make(tmp_path / "store", register=False) as store:
        assert store._ledger.connection.execute("SELECT COUNT(*) FROM subjects").fetchone() == (0,)


def test_without_a_registry_all_of_it_works(tmp_path: Path) -> None:
    with make(tmp_path / "store", register=False) as store:
        receipt = store.forget([ANN])
        assert receipt.unknown is None
        assert receipt.revoked == tuple(str(unit) for unit in UNITS if unit.shard == 0 and 0 in unit.prefix)
        assert store.forget([ANN, "stranger"]).already_forgotten == 1
        store.schedule([BOB], SOON)
        due = store.forget_due(SOON)
        assert due is not None
        assert due.unknown is None
        assert store.forgotten([*PEOPLE, "stranger"]) == {ANN, BOB, "stranger"}
        assert store.verify().passed


def test_a_registry_is_a_setting_of_the_store(tmp_path: Path) -> None:
    make(tmp_path / "store").close()
    with pytest.raises(StoreMismatchError, match="register"):
        Store.create(tmp_path / "store", SETTINGS, register=False)


def test_bands_of_risk_need_the_registry(tmp_path: Path) -> None:
    settings = {"partition": {"shards": 1, "slices": 3, "seed": 0, "bands": [2, 1]}}
    with pytest.raises(ConfigurationError, match="registry"):
        Store.create(tmp_path / "store", settings, register=False)
    assert not (tmp_path / "store").exists()


def test_a_band_says_where_a_request_reaches(tmp_path: Path) -> None:
    settings = {"partition": {"shards": 1, "slices": 3, "seed": 0, "bands": [2, 1]}}
    with Store.create(tmp_path / "store", settings) as store:
        session(store).register({"ann": 1, "bob": 0})
        store.forget(["ann", "bob"])
        places = sqlite3.connect(tmp_path / "store" / "ledger.db").execute("SELECT cell FROM tombstones").fetchall()
    assert ("0/2",) in places
    assert len({place for place in places if place != ("0/2",)}) == 1


def test_who_asked_before_the_first_fit_is_forgotten_where_their_band_puts_them(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", BANDS) as store:
        store.schedule(["ann"], SOON, strict=False)
        session(store).register({"ann": 1, "bob": 0})
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


def test_what_is_cancelled_is_not_carried_out(store: Store) -> None:
    store.schedule([ANN, BOB], SOON)
    assert store.cancel([ANN]) == 1
    assert store.forget_due(LATER) is not None
    assert store.forgotten([ANN, BOB]) == {BOB}
    assert store.verify().passed


def test_cancelling_what_is_not_scheduled_changes_nothing(store: Store) -> None:
    store.schedule([ANN], SOON)
    with pytest.raises(UnknownSubjectError, match="Nothing is scheduled for"):
        store.cancel([ANN, BOB])
    assert len(store.pending()) == 1


def test_what_is_cancelled_may_be_scheduled_again_for_later(store: Store) -> None:
    store.schedule([ANN], SOON)
    store.cancel([ANN])
    store.schedule([ANN], LATER)
    assert store.forget_due(SOON) is None
    assert store.forget_due(LATER) is not None


def test_a_restored_ledger_knows_what_was_cancelled_since(store: Store, tmp_path: Path) -> None:
    store.schedule([ANN, BOB], SOON)
    back_up(store.path, tmp_path / "backup.db")
    store.rotate_key()
    store.cancel([ANN])
    store.close()
    restore(store.path, tmp_path / "backup.db")
    with Store.open(store.path) as again:
        assert again.pending() == [(SOON.isoformat(timespec="milliseconds"), 1)]
        assert again.verify().passed


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM pending",
        "UPDATE pending SET due = '2999'",
        "UPDATE pending SET hash = x'00'",
        "UPDATE pending SET cell = '1/2'",
        'UPDATE events SET body = \'{"layers": 1, "pending": []}\'',
        "UPDATE events SET body = '{}'",
    ],
)
def test_a_scheduled_request_that_somebody_has_changed_does_not_open(store: Store, statement: str) -> None:
    store.schedule([ANN], SOON)
    with Store.open(store.path):
        store._ledger.connection.execute(statement)
    with pytest.raises(StoreError, match=r"scheduled requests|schedules requests"):
        Store.open(store.path)
    assert store.verify().problems


def test_who_moves_with_a_band_stays_scheduled_there_when_the_ledger_is_restored(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", BANDS) as store:
        store.schedule(["stranger"], SOON, strict=False)
        back_up(store.path, tmp_path / "backup.db")
        session(store).register({"stranger": 1})
        assert store.verify().passed, "the journal lacks the move"
        cells = [cell for _, _, cell in store._ledger.scheduled()]
        assert cells == [store.partition.place("stranger", 1).cell] != [store.partition.place("stranger", 0).cell]
    restore(tmp_path / "store", tmp_path / "backup.db")
    with Store.open(tmp_path / "store") as store:
        assert cells[0] in [cell for _, _, cell in store._ledger.scheduled()]
        assert store.verify().passed


@pytest.mark.parametrize("end", ["cancel", "refuse"])
def test_who_has_moved_since_no_longer_waits_once_their_request_is_cancelled_or_refused(
    tmp_path: Path, end: str
) -> None:
    with Store.create(tmp_path / "store", BANDS) as store:
        store.schedule(["ann"], SOON, strict=False, request_id="letter")
        session(store).register({"ann": 1, "bob": 0})
        (found,) = store.scheduled_requests()
        assert found.request_id == "letter"
        assert (store.cancel_request("letter") if end == "cancel" else store.refuse_request("letter", "no")) == 1
        assert store.forget_due(LATER) is None
        assert not store.forgotten(["ann"])
        assert store.verify().passed


@pytest.mark.parametrize("end", ["cancel", "refuse"])
def test_who_waits_for_a_later_request_too_waits_until_that_is_due(store: Store, tmp_path: Path, end: str) -> None:
    store.schedule([ANN, BOB], SOON, request_id="first")
    store.schedule([ANN], LATER, request_id="second")
    back_up(store.path, tmp_path / "backup.db")
    assert (store.cancel_request("first") if end == "cancel" else store.refuse_request("first", "no")) == 1
    assert store.pending() == [(LATER.isoformat(timespec="milliseconds"), 1)]
    assert [found.state for found in store.scheduled_requests()] == [
        "cancelled" if end == "cancel" else "refused",
        "scheduled",
    ]
    store.close()
    restore(store.path, tmp_path / "backup.db")
    with Store.open(store.path) as opened:
        opened.rotate_key()
        assert opened.forget_due(SOON) is None
        assert opened.verify().passed
        assert opened.cancel_request("second") == 1
        assert opened.pending() == []


@pytest.mark.parametrize("hours", [-12, 12])
def test_a_time_at_an_end_of_the_calendar_is_refused(store: Store, hours: int) -> None:
    end = datetime.max if hours < 0 else datetime.min
    with pytest.raises(ConfigurationError, match="outside the calendar"):
        store.schedule([ANN], end.replace(tzinfo=timezone(timedelta(hours=hours))))
