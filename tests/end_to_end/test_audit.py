"""The audit proves guarantee 2 on a store of one's own, and notices what breaks it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_s3t import audit
from lightning_s3t.cli import main
from lightning_s3t.errors import ConfigurationError, StoreMismatchError
from lightning_s3t.executors.audit_report import AuditReport
from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Store
from tests.people import Classifier, People, PeopleData, fit, make_trainer, tensors_of
from tests.store.people_store import session

PERSON = "user-3"


def audit_people(store: Path, people: People, *callbacks: Callback, **arguments: Any) -> AuditReport:
    chosen = {name: arguments.pop(name) for name in ("units", "seed_of_draw") if name in arguments}
    module = arguments.pop("module", Classifier())
    return audit(make_trainer(store, *callbacks, **arguments), module, datamodule=PeopleData(people), **chosen)


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(trained, tmp_path / "store"))
    with Store.open(path) as opened:
        opened.forget([PERSON])
    return path


def tamper(store: Path, unit: UnitId, amount: float) -> None:
    """Put other tensors in the place of a unit's, as a training that cheats would."""
    with Store.open(store) as opened:
        record, tensors = opened.alive()[unit], opened.load(unit)
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] + amount
        children = {u: opened.load(u) for u in opened.alive() if unit in u.lineage and u != unit}
        records = opened.alive()
        session(opened).drop([unit])
        session(opened).start_unit(unit, record.key).commit(tensors, record.provenance)
        for child, own in sorted(children.items()):
            session(opened).start_unit(child, records[child].key).commit(own, records[child].provenance)


def test_a_store_that_has_forgotten_passes(store: Path) -> None:
    report = audit_people(store, People.make())
    assert report.passed
    assert {unit.outcome for unit in report.units} == {"equal"}
    assert len(report.units) == report.survivors > 0
    assert (report.forgotten, report.rows_of_forgotten) == (1, 3)
    assert "bit for bit, what training on the other rows gives, with data that still has 3 rows" in str(report)


@pytest.mark.nightly
def test_an_audit_of_units_that_share_a_process_says_what_it_cannot_show(store: Path, tmp_path: Path) -> None:
    fit(tmp_path / "shared", People.make(), isolation="none")
    shared = audit_people(tmp_path / "shared", People.make(), isolation="none")
    assert shared.passed
    assert "Units are trained in one process" in str(shared)
    assert "one process" not in str(audit_people(store, People.make()))


def test_an_audit_does_not_speak_of_its_scratch_store(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit_people(store, People.make(), units=1)
    assert "for comparison" in caplog.text
    assert "units trained in" not in caplog.text


def test_a_store_passes_when_the_persons_rows_are_no_longer_there(store: Path) -> None:
    report = audit_people(store, People.make().without(PERSON))
    assert report.passed
    assert (report.forgotten, report.rows_of_forgotten) == (1, 0)
    assert "bit for bit, what training without the 1 forgotten subject gives" in str(report)
    assert "Not examined" not in str(report)


class Normalised(PeopleData):
    """Computes constants over all rows, as many a data module does."""

    def setup(self, stage: str) -> None:
        mean = self.train.features.mean(0)
        self.train = People(self.train.features - mean, self.train.labels, self.train.owners)


class FromLabels(Classifier):
    """Begins with a head that knows how often each label is there."""

    def __init__(self, people: People) -> None:
        super().__init__()
        self.network.head.bias.data = torch.bincount(people.labels, minlength=3).float().log()


def fitted(store: Path, module: Any, data: PeopleData) -> Path:
    make_trainer(store).fit(module, datamodule=data)
    with Store.open(store) as opened:
        opened.forget([PERSON])
    return store


def test_what_a_script_computes_over_all_rows_is_examined_only_without_those_of_the_forgotten(tmp_path: Path) -> None:
    everyone = People.make()
    store = fitted(tmp_path / "store", Classifier(), Normalised(everyone))
    kept = audit(make_trainer(store), Classifier(), datamodule=Normalised(everyone))
    assert kept.passed
    assert "Not examined: values that the script computes over all rows before the fit" in str(kept)
    assert "drop these rows before the audit" in str(kept)
    dropped = audit(make_trainer(store), Classifier(), datamodule=Normalised(everyone.without(PERSON)))
    assert not dropped.passed


def test_a_head_that_the_script_draws_otherwise_today_is_told(tmp_path: Path) -> None:
    everyone, others = People.make(), People.make().without(PERSON)
    store = fitted(tmp_path / "store", FromLabels(everyone), PeopleData(everyone))
    report = audit(make_trainer(store), FromLabels(others), datamodule=PeopleData(others))
    assert report.passed  # the kept head is given to the audit too
    assert "Not examined: the head's initial state. The store keeps the one of its first fit" in str(report)
    assert "in network.head.bias" in str(report)


def test_the_store_and_its_folder_are_as_they_were(store: Path, tmp_path: Path) -> None:
    before = tensors_of(store), sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints")
    trainer = {"enable_checkpointing": True, "logger": CSVLogger(tmp_path / "logs")}
    assert audit_people(store, People.make(), checkpoint, trainer=trainer).passed
    after = tensors_of(store), sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert sorted(before[0]) == sorted(after[0])
    assert before[1] == after[1]


def test_one_bit_that_differs_is_found_and_named(store: Path) -> None:
    with Store.open(store) as opened:
        unit = next(unit for unit in opened.alive() if unit.stage == 1)
    tamper(store, unit, 2.0**-20)
    report = audit_people(store, People.make(), units=[str(unit)])
    assert not report.passed
    (found,) = report.units
    assert (found.unit, found.outcome) == (str(unit), "differs")
    assert found.difference == pytest.approx(2.0**-20, rel=0.1)
    assert found.tensor


def test_a_sample_is_drawn_and_takes_its_parents_along(store: Path) -> None:
    first = audit_people(store, People.make(), units=2)
    assert len(first.units) == 2
    assert first.passed


def test_units_whose_data_has_changed_are_not_called_equal(store: Path) -> None:
    people = People.make()
    grown = People(
        torch.cat([people.features, torch.zeros(1, 8)]),
        torch.cat([people.labels, torch.tensor([0])]),
        [*people.owners, "x"],
    )
    report = audit_people(store, grown)
    place = Partition(2, 2).place("x")
    changed = {unit.unit for unit in report.units if unit.outcome == "data changed"}
    assert changed == {unit.unit for unit in report.units if UnitId.parse(unit.unit).reached_by(place)}
    assert not report.passed


def test_hardware_that_is_not_deterministic_is_no_proof(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_s3t.executors.audit.is_deterministic", lambda trainer: False)
    report = audit_people(store, People.make(), units=1)
    assert not report.deterministic
    assert "not deterministic" in str(report)


@pytest.mark.parametrize("units", [0, True, [], ["0/9"], ["nothing"]])
def test_units_that_are_none_are_refused(store: Path, units: Any) -> None:
    with pytest.raises(ConfigurationError):
        audit_people(store, People.make(), units=units)


def test_another_script_is_refused(store: Path) -> None:
    with pytest.raises(StoreMismatchError, match="max_epochs"):
        audit_people(store, People.make(), epochs=3)


def test_a_trainer_without_the_callback_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has 0 Unlearning callbacks"):
        audit(pl.Trainer(logger=False, enable_checkpointing=False), Classifier())


class Data(PeopleData):
    def __init__(self) -> None:
        super().__init__(People.make())


CONFIG = """
model: tests.people.Classifier
data: tests.end_to_end.test_audit.Data
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  default_root_dir: {folder}
  callbacks:
    - class_path: lightning_s3t.S3T
      init_args: {{store: {folder}/store, shards: 2, slices: 2, budget: 1, subjects: owners, adapter: {{r: 2}}}}
"""


def test_the_command_audits_from_the_config_that_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch.cli import LightningCLI

    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path))
    LightningCLI(args=["fit", "--config", str(config)], save_config_callback=None)
    with Store.open(tmp_path / "store") as opened:
        opened.forget([PERSON])
    capsys.readouterr()
    assert main(["store", "audit", "--config", str(config), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :])["passed"]
    with Store.open(tmp_path / "store") as opened:
        unit = next(iter(opened.alive()))
    tamper(tmp_path / "store", unit, 1.0)
    assert main(["store", "audit", "--config", str(config), "--units", str(unit)]) == 1
    assert f"Unit {unit} differs, by up to 1" in capsys.readouterr().out


def test_a_config_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "audit", "--config", "nowhere.yaml"]) == 2
    assert "There is no config nowhere.yaml" in capsys.readouterr().err
