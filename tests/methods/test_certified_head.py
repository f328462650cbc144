"""The certified head as a method, end to end: it answers, and its certificate stands wherever a guarantee does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t import EnsembleModule, Store, audit
from lightning_s3t.cli.main import main
from lightning_s3t.errors import ConfigurationError, StoreMismatchError
from lightning_s3t.methods import CertifiedHead
from lightning_s3t.reporting import StoreReport
from tests.people import Classifier, People, PeopleData, fit, make_trainer

PERSON = "user-3"
TEST = People.make(30, seed=6)
METHOD = CertifiedHead(epsilon=0.5, delta=1e-6)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was fitted on everyone, for copying only."""
    folder = tmp_path_factory.mktemp("certified head") / "store"
    fit(folder, People.make(), method=METHOD)
    return folder


@pytest.fixture
def store(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "store"))


def test_it_answers_and_a_request_takes_effect_at_once(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        before = served(TEST.features)
        receipt = served.forget([PERSON])
        after = served(TEST.features)
    for answers in (before, after):
        assert float((answers.argmax(-1) == TEST.labels).float().mean()) > 0.8
    assert not after.equal(before)
    assert (receipt.guarantee, receipt.subtracted_rows, receipt.revoked_units) == ("certified", 3, 0)  # type: ignore[union-attr]


def test_the_same_head_serves_until_a_request(store: Path) -> None:
    found = []
    for _ in range(2):
        with EnsembleModule.from_store(store, Classifier()) as served:
            found.append(served(TEST.features))
    assert found[0].equal(found[1])


def test_a_later_fit_adds_people_and_leaves_the_forgotten_out(store: Path) -> None:
    with Store.open(store) as opened:
        opened.forget([PERSON])
    fit(store, People.make(42), method=METHOD)
    with Store.open(store) as opened:
        assert opened.status().floor_rows == 3 * 41
        assert opened.verify().problems == ()


def test_the_certificate_stands_in_what_is_printed_and_reported(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["forget", str(store), PERSON])
    assert "Guarantee of the closed-form head: certified (epsilon 0.5, delta 1e-06)" in capsys.readouterr().out
    main(["receipt", "list", str(store), "--format", "csv"])
    assert '"certified (epsilon 0.5, delta 1e-06)"' in capsys.readouterr().out
    main(["store", "status", str(store)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "certified (epsilon 0.5, delta 1e-06). For any set of heads" in printed
    assert "Nothing is proven" not in printed
    with Store.open(store) as opened:
        page = StoreReport.of(opened).to_html()
    assert "certified (epsilon 0.5, delta 1e-06)" in page
    assert "not the pretrained network" in page
    assert "nothing is proven" not in page


def test_another_certificate_on_the_same_store_is_refused(store: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"certified\.epsilon"):
        fit(store, People.make(), method=CertifiedHead(epsilon=2.0, delta=1e-6))


def test_an_audit_is_refused_since_nothing_need_be_bitwise_equal(store: Path) -> None:
    with pytest.raises(ConfigurationError, match="promises 'certified'"):
        audit(make_trainer(store, method=METHOD), Classifier(), datamodule=PeopleData(People.make()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` to be a positive number"),
        ({"epsilon": float("inf")}, "`epsilon` to be a finite number"),
        ({"delta": 1.0}, "`delta` to be less than 1"),
        ({"noise": -1.0}, "`noise` to be a positive number"),
        ({"task": "regression"}, "predicts classes"),
        ({"bits": 2}, "`bits` to be an integer from 4 to 8"),
    ],
)
def test_arguments_that_certify_nothing_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CertifiedHead(**arguments)
