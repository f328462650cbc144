"""What is opened, what is refused, and that refusing changes nothing."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.snapshots.tensors import encode_snapshot
from tests.store.people_store import in_place, make, session

SETTINGS = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
PARENT, CHILD = UnitId(0, (0,)), UnitId(0, (0, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        for number, unit in enumerate((PARENT, CHILD)):
            session(store).start_unit(unit, "key").commit({"w": torch.tensor([number])}, {})
    return tmp_path / "store"


def test_a_store_may_hold_other_files(path: Path) -> None:
    (path / "checkpoints").mkdir()
    (path / "README.txt").touch()
    with Store.create(path, SETTINGS) as store:
        assert len(store.alive()) == 2
    assert (path / "README.txt").exists()


def test_a_store_that_has_lost_its_ledger_is_not_made_anew(path: Path) -> None:
    (path / "ledger.db").unlink()
    with pytest.raises(StoreError, match=r"has snapshots but no ledger\.db.*Restore ledger\.db from a backup"):
        Store.create(path, SETTINGS)
    assert len(list((path / "snapshots").iterdir())) == 2


def test_a_lost_folder_of_snapshots_does_not_keep_the_store_shut(path: Path) -> None:
    for snapshot in (path / "snapshots").iterdir():
        snapshot.unlink()
    (path / "snapshots").rmdir()
    with Store.open(path) as store, pytest.raises(StoreError, match="The snapshot of unit 0/0 is missing"):
        store.load(PARENT)


@pytest.mark.parametrize("make", [Store.open, lambda path: Store.create(path, SETTINGS)])
def test_another_programs_database_is_left_as_it_is(tmp_path: Path, make: object) -> None:
    file = tmp_path / "ledger.db"
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE accounts (number TEXT)")
    database.commit()
    database.close()
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(StoreError, match="has format 0, this version of lightning_s3t reads"):
        make(tmp_path)  # type: ignore[operator]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_a_ledger_of_a_newer_format_is_refused(path: Path) -> None:
    database = sqlite3.connect(path / "ledger.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match=r"has format 99.*Use the version that made it"):
        Store.open(path)


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_a_store_is_its_owners_alone_whatever_the_mask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with make(tmp_path / "deep" / "store") as store:
            store.forget([in_place(0, 0)])
            store.rotate_key()
            everything = [store.path, *store.path.rglob("*")]
            assert {path.name: path.stat().st_mode & 0o077 for path in everything if path.stat().st_mode & 0o077} == {}
            assert store.verify().passed
    finally:
        os.umask(before)


@given(st.permutations(["head.weight", "head.bias", "a.lora_A", "a.lora_B", "z"]))
def test_a_snapshots_bytes_do_not_depend_on_the_order_of_its_tensors(names: list[str]) -> None:
    kinds = [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.float16]
    tensors = dict(zip(sorted(names), (torch.ones(3, 2).to(kind) for kind in kinds), strict=True))
    assert encode_snapshot({name: tensors[name] for name in names}) == encode_snapshot(tensors)


def test_a_snapshots_bytes_do_not_depend_on_strides_or_shared_memory() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"row": whole[0], "turned": whole.t(), "same": whole}
    assert encode_snapshot(views) == encode_snapshot({name: view.clone().contiguous() for name, view in views.items()})
