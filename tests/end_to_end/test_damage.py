"""Damaged snapshots, restored ledgers and stores without a registry, through fit and serving."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lightning_s3t import EnsembleModule, Store
from lightning_s3t.plan import UnitId
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of
from tests.store.backups import back_up, restore

PEOPLE = People.make(40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "store"
    fit(path, PEOPLE, epochs=1)
    return path


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def damage(store: Path, unit: UnitId) -> None:
    with Store.open(store) as opened:
        path = store / "snapshots" / f"{opened.alive()[unit].snapshot}.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")


def test_a_fit_trains_damaged_units_again_to_the_same_bits(trained: Path, store: Path) -> None:
    damage(store, UnitId(0, (0,)))
    with pytest.warns(UserWarning, match="missing or damaged"):
        fit(store, PEOPLE, epochs=1)
    assert_bitwise_equal(tensors_of(store), tensors_of(trained))
    with Store.open(store) as opened:
        assert opened.verify().passed


def test_a_served_model_falls_back_to_what_is_whole(store: Path) -> None:
    served = EnsembleModule.from_store(store, Classifier())
    longest = served.survivors[0]
    damage(store, longest)
    with pytest.warns(UserWarning, match="falls back to its remaining intact units"):
        again = EnsembleModule.from_store(store, Classifier())
    assert again.survivors[0] != longest
    assert again.survivors[1] == served.survivors[1]
    again(torch.randn(2, 8))


def test_a_ledger_restored_from_a_backup_never_serves_the_forgotten(trained: Path, store: Path, tmp_path: Path) -> None:
    back_up(store, tmp_path / "backup.db")
    with Store.open(store) as opened:
        receipt = opened.forget(["user-3"])
    restore(store, tmp_path / "backup.db")
    shutil.copytree(trained / "snapshots", store / "snapshots", dirs_exist_ok=True)  # the backup had these too
    served = EnsembleModule.from_store(store, Classifier())
    assert not {str(unit) for unit in served.survivors.values()} & set(receipt.revoked)
    fit(store, PEOPLE, epochs=1)
    fit(tmp_path / "anew", PEOPLE.without("user-3"), epochs=1)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "anew"))


def test_without_a_registry_units_are_the_same_and_requests_work(trained: Path, tmp_path: Path) -> None:
    fit(tmp_path / "store", PEOPLE, epochs=1, keep_registry=False)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(trained))
    with Store.open(tmp_path / "store") as opened:
        receipt = opened.forget(["user-3"])
        assert receipt.unknown is None
        assert receipt.revoked
        assert opened.verify().passed


def test_a_rotated_key_trains_nothing_again(store: Path) -> None:
    with Store.open(store) as opened:
        before = {unit: record.provenance for unit, record in opened.alive().items()}
        opened.rotate_key()
    fit(store, PEOPLE, epochs=1)
    with Store.open(store) as opened:
        assert {unit: record.provenance for unit, record in opened.alive().items()} == before
