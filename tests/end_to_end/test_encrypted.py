"""Fits and served models whose snapshots are encrypted: the same bits as without keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store import Store
from tests.end_to_end.everything import PERSON, fit_with_everything, forget
from tests.end_to_end.test_postgres import answer
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of
from tests.processes import run


def is_plain(store: Path) -> bool:
    """Whether a snapshot in a store's folder is a plain safetensors file, whose header begins at the ninth byte."""
    return any(path.read_bytes()[8:9] == b"{" for path in (store / "snapshots").iterdir())


def test_encrypted_units_are_bitwise_those_without_keys(tmp_path: Path) -> None:
    people = People.make()
    here, there = tmp_path / "here", tmp_path / "there"
    fit(here, people, isolation="none")
    fit(there, people, isolation="none", keys=tmp_path / "keys")
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    for store in (here, there):
        forget(store, PERSON)
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    assert torch.equal(*(answer(EnsembleModule.from_store(store, Classifier())) for store in (here, there)))
    assert is_plain(here)
    assert not is_plain(there)
    with pytest.raises(ConfigurationError, match="would be backed up"):
        fit(there, people, isolation="none", keys=there / "keys")


@pytest.mark.nightly
def test_an_encrypted_store_is_trained_rebuilt_and_copied_as_any_other(tmp_path: Path) -> None:
    people = People.make()
    store = fit_with_everything(tmp_path / "there", people, keys=tmp_path / "keys", floor=True)
    forget(store, PERSON)
    fit_with_everything(tmp_path / "there", people, floor=True)  # the ledger says where the keys are
    run(tmp_path, "-m", "lightning_s3t", "copy", str(store), str(tmp_path / "copy"), "--keys", str(tmp_path / "new"))
    scratch = fit_with_everything(tmp_path / "scratch", people.without(PERSON), floor=True)
    assert_bitwise_equal(tensors_of(tmp_path / "copy"), tensors_of(scratch))
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["store.json"]
    with Store.open(tmp_path / "copy") as opened:
        assert opened.verify().passed


@pytest.mark.nightly
def test_a_trial_run_makes_no_keys(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), keys=tmp_path / "keys", isolation="none", trainer={"fast_dev_run": True})
    assert not (tmp_path / "keys").exists()
