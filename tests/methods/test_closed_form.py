"""The closed-form head as a method: there are no units, and everything that looks at a store says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_s3t import EnsembleModule, Store, audit
from lightning_s3t.cli.main import main
from lightning_s3t.errors import ConfigurationError, NoSurvivorError, UnsupportedError
from lightning_s3t.methods import ClosedForm
from lightning_s3t.plots import plot_store
from lightning_s3t.reporting import StoreReport
from lightning_s3t.reporting.evidence import Evidence, write_evidence
from lightning_s3t.store import RequestRecord
from tests.people import CLASSES, Classifier, People, PeopleData, fit, make_trainer
from tests.store.backups import back_up

PERSON = "user-3"
EVERYONE = [f"user-{number}" for number in range(40)]
TEST = People.make(30, seed=6)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was fitted on everyone, for copying only."""
    folder = tmp_path_factory.mktemp("closed form") / "store"
    fit(folder, People.make(), method=ClosedForm())
    return folder


@pytest.fixture
def store(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "store"))


def forget(store: Path, *people: str) -> RequestRecord:
    with Store.open(store) as opened:
        receipt = opened.forget(people)
    assert isinstance(receipt, RequestRecord)
    return receipt


def answers(store: Path) -> torch.Tensor:
    with EnsembleModule.from_store(store, Classifier()) as served:
        return served(TEST.features).detach()


def test_it_answers_and_a_request_takes_effect_at_once(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        before = served(TEST.features)
        assert float((before.argmax(-1) == TEST.labels).float().mean()) > 0.8
        served.forget([PERSON])
        assert not torch.equal(served(TEST.features), before)


def test_its_answers_are_those_of_a_first_fit_without_the_person(store: Path, tmp_path: Path) -> None:
    forget(store, PERSON)
    fit(tmp_path / "scratch", People.make().without(PERSON), method=ClosedForm())
    assert answers(store).equal(answers(tmp_path / "scratch"))


def test_a_receipt_is_about_rows_and_not_about_units(store: Path) -> None:
    receipt = forget(store, PERSON)
    assert (receipt.method, receipt.guarantee) == ("closed_form", "exact")
    assert (receipt.subtracted_rows, receipt.revoked_units, receipt.revoked, receipt.serving) == (3, 0, (), {})
    assert receipt.erased_files == 1  # the sums with the person's rows
    again = forget(store, PERSON)
    assert (again.already_forgotten, again.subtracted_rows) == (1, 0)


def test_a_restriction_subtracts_and_the_fit_after_a_release_adds_the_rows_again(store: Path, fitted: Path) -> None:
    with Store.open(store) as opened:
        restricted = opened.restrict([PERSON])
        assert (restricted.subtracted_rows, restricted.set_aside_units) == (3, 0)
        assert opened.status().floor_rows == 117
        opened.release([PERSON])
    fit(store, People.make(), method=ClosedForm())
    assert answers(store).equal(answers(fitted))


def test_it_answers_while_a_fit_adds_rows(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served, served.store.building() as building:
        owners = [*People.make().owners, "somebody new"]
        assert building.find_stale_features("pretrained", owners, [b""] * len(owners)) == {"somebody new"}
        assert len(served(TEST.features)) == 90


def test_where_everybody_asks_nothing_answers(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        served.forget(EVERYONE[:-1])
        served(TEST.features)
        served.forget(EVERYONE[-1:])
        with pytest.raises(NoSurvivorError, match="requests have left none of its rows"):
            served(TEST.features)
        assert served.store.verify().passed
        assert "Nothing serves" in str(served.store.status().advice)


def test_a_status_has_no_shards_and_lasts_until_nobody_is_left(store: Path) -> None:
    with Store.open(store) as opened:
        found = opened.status()
    assert (found.has_units, found.shards, found.serving, found.states) == (False, 0, {}, ())
    assert (found.capacity, found.served_share, found.floor_rows, found.advice) == (float("inf"), 1.0, 120, None)
    with pytest.raises(UnsupportedError, match="trains no units"):
        plot_store(found)


def test_the_commands_speak_of_rows(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("forget", "restrict"):
        main([command, str(store), {"forget": PERSON, "restrict": "user-4"}[command]])
        printed = capsys.readouterr().out
        assert "Subtracted 3 rows from the closed-form head." in printed
        assert "Guarantee of the closed-form head: exact" in printed
        assert not {"unit", "units", "shard", "shards"} & set(printed.replace(".", " ").replace(":", " ").split())
    main(["release", str(store), "user-4"])
    assert "The next fit adds the rows" in capsys.readouterr().out
    main(["store", "status", str(store)])
    assert "a closed-form head answers, of 114 rows" in " ".join(capsys.readouterr().out.split())
    main(["store", "status", str(store), "--json"])
    assert json.loads(capsys.readouterr().out)["capacity"] is None


def test_a_preview_counts_the_rows(store: Path) -> None:
    with Store.open(store) as opened:
        found = opened.preview([PERSON, "user-4"])
        assert (found.subtracted_rows, found.revoked, found.serving) == (6, (), {})
        opened.forget([PERSON])
        assert opened.preview([PERSON]).subtracted_rows == 0


def test_a_report_and_the_evidence_name_the_head(store: Path, tmp_path: Path) -> None:
    forget(store, PERSON)
    with Store.open(store) as opened:
        page = StoreReport.of(opened).to_html()
        path = write_evidence(opened, tmp_path / "evidence.zip")
    assert "The closed-form head that serves is, bit for bit" in page
    assert "shards serve" not in page
    findings = Evidence.read(path).check()
    assert all(finding.passed for finding in findings)
    assert any("1 closed-form heads" in finding.note for finding in findings)


def test_an_audit_reads_the_rows_again(store: Path) -> None:
    forget(store, PERSON)
    trainer = make_trainer(store, method=ClosedForm())
    report = audit(trainer, Classifier(), datamodule=PeopleData(People.make().without(PERSON)))
    assert report.passed
    assert (report.units, [head.outcome for head in report.heads]) == ((), ["equal"])
    assert "There are no units" in str(report)


def test_an_audit_of_units_is_refused(store: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no surviving unit to audit.*or audit all"):
        audit(make_trainer(store, method=ClosedForm()), Classifier(), datamodule=PeopleData(People.make()), units=2)


def test_a_rehearsed_restore_subtracts_again(store: Path, tmp_path: Path) -> None:
    back_up(store, tmp_path / "backup.db")
    forget(store, PERSON)
    with Store.open(store) as opened:
        found = opened.drill(tmp_path / "backup.db")
    assert found.passed, found.problems
    assert found.replayed_requests == 1


def test_an_export_is_refused(store: Path, tmp_path: Path) -> None:
    with (
        EnsembleModule.from_store(store, Classifier()) as served,
        pytest.raises(UnsupportedError, match="no linear layer has its weights"),
    ):
        served.export(tmp_path / "away.safetensors")


def test_a_network_may_be_frozen_and_the_head_reads_several_layers(tmp_path: Path) -> None:
    module = Classifier().requires_grad_(False)
    fit(tmp_path / "store", People.make(), module=module, method=ClosedForm(layers=2, width=64))
    with Store.open(tmp_path / "store") as opened:
        assert len(opened.heads()["pretrained"].part.layers) == 2
        opened.forget([PERSON])
        assert opened.verify().problems == ()
    assert float((answers(tmp_path / "store").argmax(-1) == TEST.labels).float().mean()) > 0.8


def test_fast_dev_run_reads_a_row_and_keeps_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "store", method=ClosedForm(), trainer={"fast_dev_run": True})
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"floor": True}, "is a closed-form head already"),
        ({"newcomers": "append"}, "cannot have one of their own"),
        ({"ledger": "postgresql://me@here/database?schema=s"}, "in a database cannot have a closed-form head"),
    ],
)
def test_arguments_for_units_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(tmp_path / "store", method=ClosedForm(), **arguments)


def test_a_fit_in_the_script_s_own_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="isolation='none' rules this out"):
        fit(tmp_path / "store", People.make(), method=ClosedForm(), isolation="none")


def test_a_head_that_is_not_linear_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    module = Classifier()
    module.network.head = nn.Sequential(nn.Linear(16, CLASSES), nn.LayerNorm(CLASSES))
    with pytest.raises(UnsupportedError, match=r"no closed-form head for this model.*ends in LayerNorm"):
        fit(tmp_path / "store", People.make(), module=module, method=ClosedForm())
    assert not (tmp_path / "store").exists()
