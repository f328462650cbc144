"""Fits into stores whose places are secret."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from lightning_s3t import audit
from lightning_s3t.store import Store
from lightning_s3t.store.keys.identities import KEY_VARIABLE
from tests.people import Classifier, People, PeopleData, assert_bitwise_equal, fit, make_trainer, tensors_of

PERSON = "user-3"


@pytest.mark.nightly
def test_a_rebuild_is_a_first_training_without_the_person_with_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    people = People.make(200, rows=1)  # the key is drawn: no slice may have too few rows for a batch
    fit(tmp_path / "store", people, partition="secret")
    with Store.open(tmp_path / "store") as store:
        store.forget([PERSON])
    fit(tmp_path / "store", people, partition="secret")
    fit(tmp_path / "scratch", people.without(PERSON), partition="secret")
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
def test_an_audit_takes_the_places_over(tmp_path: Path) -> None:
    people = People.make(200, rows=1)  # the key is drawn: no slice may have too few rows for a batch
    fit(tmp_path / "store", people, partition="secret")
    with Store.open(tmp_path / "store") as store:
        store.forget([PERSON])
    trainer = make_trainer(tmp_path / "store", partition="secret")
    assert audit(trainer, Classifier(), datamodule=PeopleData(people.without(PERSON))).passed


def test_a_fit_places_rows_where_its_store_does(tmp_path: Path) -> None:
    people = People.make(200, rows=1)  # the key is drawn: no slice may have too few rows for a batch
    fit(tmp_path / "store", people, partition="secret")
    with Store.open(tmp_path / "store") as store:
        place = store.partition.place(PERSON)
        reached = {str(unit) for unit in store.alive() if unit.reached_by(place)}
        rows = sum(store.partition.place(owner).cell == "0/0" for owner in people.owners)
        assert next(record["rows"] for record in store.provenance() if record["unit"] == "0/0") == rows
        assert set(store.forget([PERSON]).revoked) == reached
