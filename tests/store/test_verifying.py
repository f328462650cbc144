"""Verification finds what is wrong, and takes what is damaged out of service."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.errors import DamagedError, RevokedError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store, verification
from lightning_s3t.store.ledgers.sqlite import SqliteLedger
from tests.store.people_store import UNITS, build, in_place, make, session

TOP, ABOVE = UnitId(0, (0,)), [UnitId(0, (0, 1)), UnitId(0, (0, 1, 2))]


@pytest.fixture
def store(path: Path) -> Store:
    return Store.open(path)


def snapshot_of(store: Store, unit: UnitId) -> Path:
    return store.path / "snapshots" / f"{store.alive()[unit].snapshot}.safetensors"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def swap_for_another(path: Path) -> None:
    other = next(other for other in path.parent.iterdir() if other != path)
    shutil.copy(other, path)


HARMS = [truncate, empty, flip_a_bit, swap_for_another, Path.unlink]


def test_a_store_that_is_whole_passes(store: Store) -> None:
    store.forget([in_place(0, 0), in_place(1, 2)])
    found = store.verify()
    assert found.passed, found.problems
    assert (found.events, found.units) == (2, len(store.alive()))


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_snapshot_is_named_and_taken_out_with_what_was_built_on_it(
    store: Store, harm: Callable[[Path], None]
) -> None:
    harm(snapshot_of(store, TOP))
    found = store.verify()
    assert found.damaged == (TOP,)
    assert found.problems == ("The snapshot of unit 0/0 is missing or damaged.",)
    assert set(store.alive()) == set(UNITS) - {TOP, *ABOVE}
    assert store.verify().passed
    with pytest.raises(RevokedError):
        store.load(TOP)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_snapshot_is_never_loaded(store: Store, harm: Callable[[Path], None]) -> None:
    harm(snapshot_of(store, TOP))
    with pytest.raises(DamagedError, match="unit 0/0"):
        store.load(TOP)


def test_damage_is_in_the_chain_and_holds_after_a_restored_ledger(store: Store, tmp_path: Path) -> None:
    store.close()
    shutil.copy(store.path / "ledger.db", tmp_path / "backup.db")
    with Store.open(store.path) as opened:
        snapshot_of(opened, TOP).unlink()
        opened.verify()
        assert [event.kind for event in opened._ledger.events()] == ["damage"]
    shutil.copy(tmp_path / "backup.db", store.path / "ledger.db")
    with Store.open(store.path) as opened:
        assert set(opened.alive()) == set(UNITS) - {TOP, *ABOVE}


def test_a_snapshot_that_two_units_share_takes_both_out(tmp_path: Path) -> None:
    with Store.create(tmp_path / "twins", {"partition": {"shards": 2, "slices": 3, "seed": 0}}) as store:
        for unit in (UnitId(0, (0,)), UnitId(1, (0,))):
            build(store, unit, 1.0)
        snapshot_of(store, TOP).unlink()
        assert set(store.verify().damaged) == {UnitId(0, (0,)), UnitId(1, (0,))}
        assert not store.alive()


def test_a_missing_folder_of_snapshots_is_no_damage(store: Store) -> None:
    shutil.move(store.path / "snapshots", store.path.parent / "elsewhere")
    with pytest.raises(StoreError, match="mount the disk"):
        store.verify()
    shutil.move(store.path.parent / "elsewhere", store.path / "snapshots")
    assert store.verify().passed
    assert set(store.alive()) == set(UNITS)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM tombstones", "1 tombstones are missing"),
        ("UPDATE tombstones SET cell = '0/2'", "1 tombstones do not belong to any request"),
        ("INSERT INTO tombstones VALUES (x'00', 1, '0/0')", "1 tombstones do not belong to any request"),
        ("INSERT INTO subjects SELECT hash, 0, 0 FROM tombstones", "1 forgotten subjects are registered"),
        ("UPDATE events SET time = 'never' WHERE position = 2", "broken at position 2"),
        ("DELETE FROM events WHERE position = 2", "ledger ends at event 1, the journal at 2"),
    ],
)
def test_what_somebody_has_changed_in_the_ledger_is_found(store: Store, statement: str, problem: str) -> None:
    store.forget([in_place(0, 0)])
    store._ledger.connection.execute(statement)
    assert problem in " ".join(store.verify().problems)


def test_a_revoked_unit_that_somebody_has_put_back_is_found(store: Store) -> None:
    connection = store._ledger.connection
    artifact = connection.execute("SELECT * FROM artifacts WHERE name = '0/0'").fetchone()
    record = connection.execute("SELECT * FROM vault WHERE id = ?", (artifact[2],)).fetchone()
    snapshot = snapshot_of(store, TOP)
    data = snapshot.read_bytes()
    store.forget([in_place(0, 0)])
    connection.execute("INSERT INTO artifacts VALUES (?, ?, ?, ?, ?)", artifact)
    connection.execute("INSERT OR REPLACE INTO vault VALUES (?, ?, ?)", record)
    snapshot.write_bytes(data)
    assert any("Unit 0/0 was trained before request 1" in problem for problem in store.verify().problems)


def test_a_unit_trained_anew_after_the_request_may_serve(store: Store) -> None:
    store.forget([in_place(0, 0)])
    build(store, TOP, 9.0)
    assert store.verify().passed


@pytest.mark.parametrize("name", ["notes.txt", "snapshots/old.safetensors", "deep/er/file"])
def test_a_file_that_nobody_has_registered_is_found(store: Store, name: str) -> None:
    (store.path / name).parent.mkdir(parents=True, exist_ok=True)
    (store.path / name).write_text("hello")
    assert any(name in problem for problem in store.verify().problems)


def test_files_are_not_looked_at_while_a_fit_runs(store: Store) -> None:
    with store.building():
        (store.path / "snapshots" / "half.safetensors").write_text("being written")
        with Store.open(store.path) as other:
            found = other.verify()
    assert found.passed
    assert found.skipped


def test_a_registered_file_within_the_store_is_known(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        (store.path / "checkpoints").mkdir()
        build(store, UnitId(1, (2,)), 1.0, store.path / "checkpoints" / "best.ckpt")
        assert store.verify().passed


def test_a_key_that_others_can_read_is_found(store: Store) -> None:
    (store.path / "subject.key").chmod(0o644)
    assert any("chmod 600" in problem for problem in store.verify().problems)


def test_a_damaged_page_of_the_database_closes_the_store(store: Store) -> None:
    store.forget([in_place(0, 0)])
    store.close()
    size = (store.path / "ledger.db").stat().st_size
    with (store.path / "ledger.db").open("r+b") as file:
        for page in range(1, size // 4096):
            file.seek(page * 4096 + 100)
            file.write(b"\xff" * 3996)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store.path)


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
        monkeypatch.setattr(SqliteLedger, "clear_traces", lambda *args: None)  # waits for the reader
        assert store.verify().passed


@pytest.mark.parametrize("body", ["{}", "[]", "7", '{"tombstones": 7}', '{"tombstones": [["zz", 0, 0]]}'])
def test_verification_of_a_request_that_nobody_can_read_names_it(path: Path, body: str) -> None:
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
        store._ledger.connection.execute("UPDATE events SET body = ? WHERE position = 1", (body,))
        assert "The request of event 1 cannot be read." in store.verify().problems


def test_an_empty_folder_where_a_disk_was_is_no_damage(path: Path) -> None:
    with Store.open(path) as store:
        session(store).save_base({"w": torch.zeros(2)})
        alive = set(store.alive())
        (path / "snapshots").rename(path.parent / "disk")
        (path / "snapshots").mkdir()
        for look in (store.verify, store.take_out_damaged):
            with pytest.raises(StoreError, match=r"is empty\. If it is on its own disk, mount the disk"):
                look()
        (path / "snapshots").rmdir()
        (path.parent / "disk").rename(path / "snapshots")
        assert store.verify().passed
        assert set(store.alive()) == alive
