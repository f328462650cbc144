"""Rows that change under the same ids: `S3T(digest_rows=True)`, and what a fit notes of the data that it found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.cli import main
from lightning_s3t.errors import StoreMismatchError, UnsupportedError
from lightning_s3t.store import Store
from tests.people import People, assert_bitwise_equal, fit, tensors_of

CHANGED = People.make().replaced("user-3")


class Jittered(People):
    """Draws an augmentation at each look, from torch's global generator."""

    def __getitem__(self, row: int) -> Any:
        features, label = super().__getitem__(row)
        return features + torch.randn(len(features)) / 100, label


@pytest.fixture(scope="module")
def digested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("digested") / "store"
    fit(store, jittered(People.make()), epochs=1, digest_rows=True)
    return store


@pytest.fixture
def store(digested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digested, tmp_path / "store"))


def jittered(people: People) -> Jittered:
    return Jittered(people.features, people.labels, people.owners)


def last_fit(store: Path) -> dict[str, Any]:
    with Store.open(store) as opened:
        return dict(opened.options["last_fit"])


def test_what_was_trained_on_rows_that_have_changed_is_trained_again(store: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"rows with the same ids have changed, so 3 units are trained again"):
        fit(store, jittered(CHANGED), epochs=1, digest_rows=True)
    fit(tmp_path / "first", jittered(CHANGED), epochs=1, digest_rows=True)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "first"))


def test_rows_that_are_augmented_at_random_are_the_same_rows(store: Path) -> None:
    before = tensors_of(store)
    fit(store, jittered(People.make()), epochs=1, digest_rows=True)
    assert last_fit(store)["other_rows"] == 0
    assert_bitwise_equal(before, tensors_of(store))


def test_the_status_says_what_the_last_fit_has_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(store, jittered(CHANGED), epochs=1, digest_rows=True)
    assert main(["store", "status", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["last_fit"]
    assert (found["rows"], found["subjects"], found["other_rows"], found["other_subjects"]) == (120, 40, 3, 0)
    assert main(["store", "status", str(store)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "found 120 rows of 40 subjects." in text
    assert "In 3 units, rows had changed under the same ids." in text


def test_a_store_belongs_to_one_of_both(store: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"training\.digest_rows: store true, now false"):
        fit(store, jittered(People.make()), epochs=1)


def test_units_that_share_a_process_do_not_read_rows_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"digest_rows: rows are read in a separate process"):
        fit(tmp_path / "store", People.make(), digest_rows=True, isolation="none")
    assert not (tmp_path / "store").exists()
