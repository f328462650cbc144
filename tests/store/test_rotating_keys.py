"""The key of the subjects' ids: rotated, given by the environment, lost."""

from __future__ import annotations

import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import StoreError, UnknownSubjectError
from lightning_s3t.store import Store
from lightning_s3t.store.keys.identities import KEY_VARIABLE
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.sqlite import SqliteLedger
from tests.store.backups import restore
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, in_place, make, session

GONE, STAYS = in_place(0, 0), in_place(1, 1)


def hashes(store: Store, table: str) -> set[bytes]:
    return {row[0] for row in store._ledger.connection.execute(f"SELECT hash FROM {table}")}


def test_after_a_rotation_everybody_is_found_under_another_hash(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        store.forget([GONE])
        before = {table: hashes(store, table) for table in ("subjects", "tombstones")}
        alive = set(store.alive())
        store.rotate_key()
        for table, old in before.items():
            assert len(hashes(store, table)) == len(old)
            assert not hashes(store, table) & old
        assert store.forgotten([GONE, STAYS]) == {GONE}
        assert set(store.alive()) == alive
        assert store.forget([STAYS]).unknown == 0
        assert store.forget([GONE]).already_forgotten == 1
        with pytest.raises(UnknownSubjectError):
            store.forget(["nobody"])
        assert store.verify().passed
    with Store.open(tmp_path / "store") as store:
        assert store.forgotten([GONE, STAYS]) == {GONE, STAYS}


def test_digests_of_slices_stay_so_that_nothing_is_trained_anew(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        before = store.subject_hashes([STAYS])
        store.rotate_key()
        assert store.subject_hashes([STAYS]) == before


def test_another_process_takes_the_rotation_up(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store, Store.open(tmp_path / "store") as other:
        other.rotate_key()
        other.rotate_key()
        session(store).register(["newcomer"])
        assert store.forget([GONE, "newcomer"]).unknown == 0
        assert other.forgotten([GONE]) == {GONE}


def test_the_key_is_not_rotated_beside_a_fit(tmp_path: Path) -> None:
    with (
        make(tmp_path / "store") as store,
        store.building(),
        Store.open(tmp_path / "store") as other,
        pytest.raises(StoreError, match="Another fit is running"),
    ):
        other.rotate_key()


@pytest.mark.nightly
def test_a_rotation_that_is_killed_anywhere_loses_nobody(tmp_path: Path) -> None:
    with make(tmp_path / "template") as store:
        store.forget([GONE])
    fatal, survived = 0, False
    while not survived:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        shutil.copytree(tmp_path / "template", path)

        def rotate(path: Path = path):  # type: ignore[no-untyped-def]
            with Store.open(path) as store:
                store.rotate_key()
                yield "rotated"

        _, survived = acknowledged_until_killed(rotate, fatal)
        with Store.open(path) as store:
            assert store.forgotten(PEOPLE) == {GONE}
            store.rotate_key()
            assert store.forgotten(PEOPLE) == {GONE}
            assert store.verify().passed
        shutil.rmtree(path)
    assert fatal > 10


def test_an_old_ledger_beside_the_new_key_catches_up(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make(path).close()
    shutil.copy(path / "ledger.db", tmp_path / "backup.db")
    with Store.open(path) as store:
        store.forget([GONE])
        store.rotate_key()
        store.forget([STAYS])
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert store.forgotten(PEOPLE) == {GONE, STAYS}
        assert store.verify().passed


def test_an_old_key_beside_the_new_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with make(path) as store:
        old = (path / "subject.key").read_bytes()
        store.rotate_key()
    (path / "subject.key").write_bytes(old)
    with pytest.raises(StoreError, match="not those of the store"):
        Store.open(path)


def test_the_environment_may_give_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = secrets.token_hex(32)
    monkeypatch.setenv(KEY_VARIABLE, key)
    with make(tmp_path / "store") as store:
        store.forget([GONE])
    assert not (tmp_path / "store" / "subject.key").exists()
    with Store.open(tmp_path / "store") as store:
        assert store.forgotten([GONE]) == {GONE}
        with pytest.raises(StoreError, match="Expected a new one after them"):
            store.rotate_key()
    monkeypatch.setenv(KEY_VARIABLE, f"{key}:{secrets.token_hex(32)}")
    with Store.open(tmp_path / "store") as store:
        assert store.forgotten([GONE]) == {GONE}
        store.rotate_key()
        assert store.forgotten([GONE]) == {GONE}
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(StoreError, match="not those of the store"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("wrong", ["", "abc", "zz" * 32, "00" * 31, "00" * 32 + ":"])
def test_a_key_in_the_environment_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, wrong)
    with pytest.raises(StoreError, match="is not a key"):
        Store.create(tmp_path / "store", SETTINGS)


def test_another_stores_key_is_refused_before_anybody_is_missed(tmp_path: Path) -> None:
    make(tmp_path / "store").close()
    make(tmp_path / "other").close()
    shutil.copy(tmp_path / "other" / "subject.key", tmp_path / "store" / "subject.key")
    with pytest.raises(StoreError, match="not those of the store"):
        Store.open(tmp_path / "store")


def test_who_is_forgotten_is_told_while_another_process_rotates_the_key(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        store.forget([in_place(0, 0)])
        present, rotations = SqliteLedger.forgotten, [other]

        def rotated_before(self: SqliteLedger, *args: Any) -> set[bytes]:
            if rotations and self is store._ledger:
                rotations.pop().rotate_key()
            return present(self, *args)

        monkeypatch.setattr(SqliteLedger, "forgotten", rotated_before)
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
        assert [event.body for event in store._ledger.events() if event.kind == "rotation"] == [{"layers": 2}]
        assert store.verify().passed


def test_no_page_keeps_an_id_under_the_key_before(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        people = [f"person-{number}" for number in range(20_000)]
        session(store).register(people)
        old = set(store._keyring.hashes(people))
        store.rotate_key()
        data = b"".join(file.read_bytes() for file in store.path.glob("ledger.db*"))
        assert not old & {data[start : start + 16] for start in range(len(data))}
