"""Erasing the files of a unit: all its names, names that cannot be, files that cannot be removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.requests.erasure import remove
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 2, "slices": 1, "seed": 0}}
FIRST, SECOND = UnitId(0, (0,)), UnitId(1, (0,))
ROOT = Path(__file__).parents[2]

UNLINK_REFUSED = """
import os, sys
sys.path.insert(0, {root!r})
from lightning_s3t.errors import StoreError
from lightning_s3t.store import Store

unlink = os.unlink
def refusing(path, *args, **kwargs):
    if str(path).endswith("stuck.ckpt"):
        raise PermissionError(13, "Permission denied", str(path))
    return unlink(path, *args, **kwargs)

store = Store.open({path!r})
os.unlink = refusing
try:
    store.forget([{person!r}])
except StoreError as error:
    print(error)
"""


def person_in(shard: int) -> str:
    partition = Partition(**SETTINGS["partition"])
    return next(name for name in map(str, range(100)) if partition.place(name).shard == shard)


def build(store: Store, unit: UnitId, *files: Path, number: float = 0.0) -> None:
    attempt = session(store).start_unit(unit, "key")
    for path in files:
        attempt.register_file(path)
        path.write_text(str(unit))
    attempt.commit({"w": torch.tensor([number])}, {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        session(store).register([person_in(0), person_in(1)])
    return tmp_path / "store"


def test_a_file_under_two_spellings_belongs_to_the_last_who_wrote_it(path: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with Store.open(path) as store:
        build(store, FIRST, tmp_path / "link" / ".." / "run" / "last.ckpt")
        build(store, SECOND, tmp_path / "run" / "last.ckpt", number=1)
        assert store.forget([person_in(0)]).erased_files == 1  # the snapshot
        assert (tmp_path / "run" / "last.ckpt").read_text() == str(SECOND)
        store.forget([person_in(1)])
        assert not (tmp_path / "run" / "last.ckpt").exists()


def test_erasing_does_not_follow_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    with Store.open(path) as store:
        attempt = session(store).start_unit(FIRST, "key")
        attempt.register_file(tmp_path / "last.ckpt")
        (tmp_path / "last.ckpt").symlink_to(tmp_path / "precious")
        attempt.abandon()
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 300, "with\0null", "file/below-a-file", "gone/with-its-folder"])
def test_a_name_that_no_file_can_have_is_passed_over(path: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with Store.open(path) as store:
        attempt = session(store).start_unit(FIRST, "key")
        attempt.register_file(f"{tmp_path}/{name}")
        attempt.commit({"w": torch.ones(1)}, {})
        assert store.forget([person_in(0)]).erased_files == 1
    Store.open(path).close()


def test_a_file_that_cannot_be_removed_is_named_and_removed_later(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        build(store, FIRST, tmp_path / "stuck.ckpt", tmp_path / "free.ckpt")
    code = UNLINK_REFUSED.format(root=str(ROOT), path=str(path), person=person_in(0))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "never serves again, but 1 of its files could not be erased" in result.stdout
    assert "stuck.ckpt (Permission denied)" in result.stdout
    assert "open the store again" in result.stdout
    assert {entry.name for entry in tmp_path.glob("*.ckpt")} == {"stuck.ckpt"}
    assert list((path / "snapshots").iterdir()) == []
    with Store.open(path) as store:
        assert FIRST not in store.alive()
        assert not (tmp_path / "stuck.ckpt").exists()
        assert store.receipts()[0].erased_files == 3


def test_a_store_opened_through_a_link_keeps_a_snapshot_that_another_unit_needs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(path)
    with Store.open(path) as store:
        build(store, FIRST)
        build(store, SECOND)  # equal tensors: one file
        with store._ledger.transaction():  # revoked, and killed before the erasure
            remove(store._backend, [str(FIRST)], None)
    with Store.open(tmp_path / "linked") as store:
        assert torch.equal(store.load(SECOND)["w"], torch.zeros(1))


def test_a_store_that_was_moved_before_the_erasure_is_erased_where_it_is(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        build(store, FIRST)
        with store._ledger.transaction():
            remove(store._backend, [str(FIRST)], None)
    path.rename(tmp_path / "moved")
    with Store.open(tmp_path / "moved"):
        assert list((tmp_path / "moved" / "snapshots").iterdir()) == []


def test_a_request_that_cannot_be_written_changes_nothing(path: Path) -> None:
    with Store.open(path) as store, Store.open(path) as busy:
        build(store, FIRST)
        store._ledger.connection.execute("PRAGMA busy_timeout = 50")
        with busy._ledger.transaction(), pytest.raises(StoreError, match=r"could not be written.*Nothing was changed"):
            store.forget([person_in(0)])
        assert store.request_number == 0
        assert FIRST in store.alive()
        assert store.forget([person_in(0)]).request == 1
