"""Fits and served models whose store has its ledger in PostgreSQL: the same bits as with a ledger in the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.errors import ConfigurationError, MovedError
from lightning_s3t.store import Store
from tests.end_to_end.everything import PERSON, fit_with_everything, forget
from tests.object_storage import shared_storage
from tests.people import ARGUMENTS, Classifier, People, assert_bitwise_equal, fit, tensors_of
from tests.postgres_server import shared_server
from tests.processes import run


def answer(served: EnsembleModule) -> Tensor:
    with torch.no_grad():
        return served(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.nightly
def test_what_is_trained_served_forgotten_and_rebuilt_is_bitwise_that_of_a_store_in_a_folder(tmp_path: Path) -> None:
    people = People.make()
    here = fit_with_everything(tmp_path / "folder", people)
    there = fit_with_everything(tmp_path / "database", people, ledger=shared_server().new_address())
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    for store in (here, there):
        forget(store, PERSON)
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    assert torch.equal(*(answer(EnsembleModule.from_store(store, Classifier())) for store in (here, there)))
    fit_with_everything(tmp_path / "database", people)  # the folder says where the ledger is
    scratch = fit_with_everything(tmp_path / "scratch", people.without(PERSON))
    assert_bitwise_equal(tensors_of(there), tensors_of(scratch))
    with Store.open(there) as opened:
        assert opened.verify().passed


@pytest.mark.nightly
def test_a_request_by_a_command_reaches_a_model_that_serves(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), ledger=shared_server().new_address(), isolation="none")
    served = EnsembleModule.from_store(store, Classifier())
    before = answer(served)
    receipt = json.loads(run(tmp_path, "-m", "lightning_s3t", "forget", str(store), PERSON, "--json"))
    assert receipt["revoked_units"] > 0
    after = answer(served)
    assert not torch.equal(before, after)
    assert torch.equal(after, answer(EnsembleModule.from_store(store, Classifier())))
    run(tmp_path, "-m", "lightning_s3t", "store", "verify", str(store))


def test_snapshots_in_a_bucket_are_bitwise_those_in_the_folder(tmp_path: Path) -> None:
    people = People.make()
    elsewhere = {
        "ledger": shared_server().new_address(),
        "snapshots": f"s3://{shared_storage().new_bucket()}/people",
    }
    here, there = tmp_path / "here", tmp_path / "there"
    fit(here, people, isolation="none")
    fit(there, people, isolation="none", **elsewhere)
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    for store in (here, there):
        forget(store, PERSON)
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    served = [answer(EnsembleModule.from_store(store, Classifier())) for store in (here, there)]
    assert torch.equal(*served)
    assert not any((there / "snapshots").iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_what_is_trained_and_copied_back_is_bitwise_that_of_a_store_in_a_folder(kind: str, tmp_path: Path) -> None:
    people = People.make()
    place = f"s3://{shared_storage().new_bucket()}/people" if kind == "bucket" else str(tmp_path / "shared")
    here = fit_with_everything(tmp_path / "here", people)
    there = fit_with_everything(tmp_path / "there", people, ledger=shared_server().new_address(), snapshots=place)
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    for store in (here, there):
        forget(store, PERSON)
    assert_bitwise_equal(tensors_of(here), tensors_of(there))
    served = EnsembleModule.from_store(there, Classifier())
    assert torch.equal(answer(EnsembleModule.from_store(here, Classifier())), answer(served))
    fit_with_everything(tmp_path / "there", people)  # the ledger says where the snapshots are
    run(tmp_path, "-m", "lightning_s3t", "copy", str(there), str(tmp_path / "back"))
    with pytest.raises(MovedError):
        answer(served)
    scratch = fit_with_everything(tmp_path / "scratch", people.without(PERSON))
    assert_bitwise_equal(tensors_of(tmp_path / "back"), tensors_of(scratch))
    assert not any((there / "snapshots").iterdir())


@pytest.mark.nightly
def test_a_trial_run_makes_no_ledger_in_the_database(tmp_path: Path) -> None:
    address = shared_server().new_address()
    fit(tmp_path / "store", People.make(), ledger=address, isolation="none", trainer={"fast_dev_run": True})
    with shared_server().connect() as connection:
        schemas = {name for (name,) in connection.execute("SELECT nspname FROM pg_namespace")}
    assert address.partition("schema=")[2] not in schemas


def test_a_floor_and_a_ledger_in_a_database_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match="with its ledger in a database cannot have a closed-form head"):
        S3T("runs/s3t", ledger="postgresql://s3t@host/db", floor=True, **ARGUMENTS)
