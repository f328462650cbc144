"""A restore that is rehearsed says what a real one would give, and changes nothing."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store import Store
from tests.object_storage import shared_storage
from tests.postgres_server import shared_server
from tests.store.backups import back_up, restore
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place, session

ANN, BOB, EVE = in_place(0, 0), in_place(1, 0), in_place(1, 1)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "ledger.db-" not in path.name and not path.name.endswith(".lock")
    }


def test_a_drill_says_what_a_restore_then_gives(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        store.forget([EVE])
        back_up(path, tmp_path / "backup.db")
        store.forget([ANN])
        build(store, UNITS[0], 70.0)  # not in the backup
        store.rotate_key()
        store.restrict([BOB])
        before = contents(path)
        found = store.drill(tmp_path / "backup.db")
        assert found.passed, found.problems
        assert contents(path) == before
        assert not (path / "scratch").exists()
        assert (found.backup_events, found.replayed_requests, found.forgotten) == (2, 2, 1)
        assert found.events == found.backup_events + found.replayed
        assert found.units - found.restored_units == 1
        assert set(found.seconds) == {"copy", "open", "verify"}
        today = store.alive().keys(), store.forgotten(PEOPLE), store.restricted(PEOPLE)
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert len(store.alive()) == found.restored_units
        assert (store.alive().keys() | {UNITS[0]}, store.forgotten(PEOPLE), store.restricted(PEOPLE)) == today


def test_a_whole_folder_is_a_backup_too(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "backup")
    with Store.open(path) as store:
        store.forget([ANN])
        assert store.drill(tmp_path / "backup").replayed_requests == 1


def test_a_backup_that_is_damaged_or_of_another_store_is_told(path: Path, tmp_path: Path) -> None:
    Store.create(tmp_path / "other", SETTINGS).close()
    (tmp_path / "damaged.db").write_bytes(b"damaged")
    with Store.open(path) as store:
        store.forget([ANN])
        for backup in ("other", "damaged.db"):
            found = store.drill(tmp_path / backup)
            assert not found.passed
        assert store.verify().passed


def test_a_backup_that_somebody_has_changed_is_told(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        store.forget([ANN])
    back_up(path, tmp_path / "backup.db")
    with sqlite3.connect(tmp_path / "backup.db") as changed:
        changed.execute("DELETE FROM tombstones")
    with Store.open(path) as store:
        assert any("is inconsistent" in problem for problem in store.drill(tmp_path / "backup.db").problems)


@pytest.mark.parametrize("backup", ["store", "store/ledger.db", "nothing", "postgresql://db.example/ml"])
def test_what_is_no_backup_is_refused(backup: str, path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        with pytest.raises(ConfigurationError, match=r"backup"):
            store.drill(backup if ":" in backup else tmp_path / backup)
        assert store.verify().passed


@pytest.mark.nightly
def test_a_database_is_rehearsed_beside_the_bucket_whose_snapshots_stay(tmp_path: Path) -> None:
    bucket, database = shared_storage().new_bucket(), f"drill_{tmp_path.name}".replace("-", "_")[:50]
    with shared_server().connect() as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
    address = shared_server().address("churn", database)
    place = f"s3://{bucket}/churn"
    with Store.create(tmp_path / "store", SETTINGS, ledger=address, snapshots=place) as store:
        session(store).register(PEOPLE)
        for number, unit in enumerate(UNITS[:3]):
            build(store, unit, number)
    shared_server().copy_database(database, f"{database}_restored")
    with Store.open(tmp_path / "store") as store:
        for number, unit in enumerate(UNITS[:3]):
            build(store, unit, number + 10)
        store.forget([in_place(0, 1)])
        before = shared_storage().left(bucket)
        found = store.drill(shared_server().address("churn", f"{database}_restored"))
        assert found.passed, found.problems
        assert (found.replayed_requests, found.forgotten) == (1, 1)
        assert (found.units, found.restored_units) == (1, 0)  # they were trained again since, to other bits
        assert shared_storage().left(bucket) == before
        assert store.verify().passed
        for own in (address, address.replace("?host", "?application_name=x&host")):
            with pytest.raises(ConfigurationError, match="is the store's own ledger"):
                store.drill(own)
        assert store.verify().passed
