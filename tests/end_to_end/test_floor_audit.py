"""An audit reads the features of the floor and of heads on survivors again, and compares their sums bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t import Floor, Store, audit
from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.errors import StoreMismatchError
from lightning_s3t.executors.audit_report import AuditReport
from lightning_s3t.store.heads.feature_sums import FeatureSums
from lightning_s3t.store.heads.floor import _keep, _note
from tests.end_to_end.everything import forget
from tests.people import Classifier, People, PeopleData, fit, make_trainer

PERSON = "user-3"
ARGUMENTS: dict[str, Any] = {"epochs": 1, "floor": Floor(survivors=True)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a floor and heads on survivors, for copying only."""
    folder = tmp_path_factory.mktemp("floor") / "store"
    fit(folder, People.make(), **ARGUMENTS)
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def audit_people(store: Path, people: People, units: Any = 1, **arguments: Any) -> AuditReport:
    trainer = make_trainer(store, **{**ARGUMENTS, **arguments})
    return audit(trainer, Classifier(), datamodule=PeopleData(people), units=units)


def sums_of_floor(store: Path) -> FeatureSums:
    with Store.open(store) as opened:
        found = opened.load_head()
    assert found is not None
    return found


def put_back(store: Path, sums: FeatureSums) -> None:
    """Put other sums in the place of the floor's, as a request that subtracts too little would leave them."""
    with Store.open(store) as opened, opened._ledger.transaction():
        states = opened.heads()
        _keep(opened._backend, states, PRETRAINED, sums, None)
        _note(opened._backend, states)


def test_the_floor_and_the_heads_on_audited_units_pass_after_a_request(store: Path) -> None:
    forget(store, PERSON)
    with Store.open(store) as opened:
        headed = [unit for unit in opened.alive() if str(unit) in opened.heads()]
    report = audit_people(store, People.make().without(PERSON), units=[str(headed[0])])
    assert report.passed, report
    assert [(head.source, head.outcome) for head in report.heads] == [(PRETRAINED, "equal"), (str(headed[0]), "equal")]
    assert "The sums of 2 of 2 closed-form heads are, bit for bit" in str(report)
    assert len(json.loads(report.to_json())["heads"]) == 2


def test_a_floor_that_keeps_a_forgotten_person_is_found(store: Path) -> None:
    before = sums_of_floor(store)
    forget(store, PERSON)
    put_back(store, before)
    report = audit_people(store, People.make())
    assert {unit.outcome for unit in report.units} == {"equal"}
    assert [(head.source, head.outcome) for head in report.heads] == [(PRETRAINED, "differs")]
    assert not report.passed
    assert "The sums of the closed-form head differ, by up to" in str(report)


def test_a_floor_of_other_rows_has_nothing_to_be_compared_with(store: Path) -> None:
    report = audit_people(store, People.make().without("user-5"))
    assert [head.outcome for head in report.heads] == ["data changed"]
    assert "The closed-form head: data changed." in str(report)


def test_an_audit_before_a_fit_has_read_a_released_persons_rows_asks_for_the_fit(store: Path) -> None:
    with Store.open(store) as opened:
        opened.restrict([PERSON])
        opened.release([PERSON])
    report = audit_people(store, People.make())
    assert "data changed" in {head.outcome for head in report.heads}
    assert "rows of corrected or released people yet. Call fit" in str(report)


def test_a_floor_is_audited_when_no_unit_is_left(store: Path) -> None:
    with Store.open(store) as opened:
        for number in range(40):
            if opened.alive():
                opened.forget([f"user-{number}"])
    report = audit_people(store, People.make(), units="all")
    assert report.passed, report
    assert (report.units, [head.source for head in report.heads]) == ((), [PRETRAINED])


def test_an_audit_without_the_floors_arguments_says_what_it_leaves_out(store: Path) -> None:
    report = audit_people(store, People.make(), floor=None)
    assert report.passed
    assert not report.heads
    assert "Not examined: the store's closed-form heads" in str(report)


def test_an_audit_with_another_floor_is_refused(store: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"floor\.bits: store 8, now 6"):
        audit_people(store, People.make(), floor=Floor(bits=6))
