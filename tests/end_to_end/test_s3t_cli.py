"""`s3t fit`, `validate`, `test` and `predict`: LightningCLI with the callback, and with the ensemble."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_s3t.cli import main
from lightning_s3t.cli.stored_config import stored_config
from lightning_s3t.errors import StoreError
from lightning_s3t.store import Store
from tests.people import Classifier, People, PeopleData, fit


class Served(Classifier):
    """Says which class answers."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        features, labels = batch
        self.log("test_accuracy", (self(features).argmax(-1) == labels).float().mean())
        served = self.trainer.lightning_module
        self.log("is_an_ensemble", float(len(getattr(served, "survivors", {}))))
        self.log("answers_by_vote", float(getattr(served, "aggregate", "") == "vote"))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        answers: Tensor = self(batch[0])
        return answers


class Data(PeopleData):
    def __init__(self, people: int = 40) -> None:
        super().__init__(People.make(people))

    def predict_dataloader(self) -> Any:
        return DataLoader(People.make(10, seed=6), batch_size=16)


HERE = "tests.end_to_end.test_s3t_cli"
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false",
]
CALLBACK = ["--s3t.shards=2", "--s3t.slices=2", "--s3t.budget=2", "--s3t.subjects=owners", "--s3t.adapter.r=2"]
FIT = ["fit", f"--model={HERE}.Served", f"--data={HERE}.Data", "--trainer.max_epochs=1", *QUIET, *CALLBACK]

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that `s3t fit` has made, alone in the folder where it ran, for copying only."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["s3t"])
        assert main([*FIT, f"--s3t.store={folder / 'store'}"]) == 0
    return folder / "store"


@pytest.fixture
def store(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["s3t"])
    return Path(shutil.copytree(fitted, tmp_path / "store"))


def test_fit_on_a_cluster_needs_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(sys, "argv", ["s3t"])
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main([*FIT, f"--s3t.store={tmp_path / 'store'}", "--ray=auto"]) == 2
    assert 'pip install "lightning-s3t[ray]"' in capsys.readouterr().err
    assert "RAY_ADDRESS" not in os.environ
    assert not (tmp_path / "store").exists()


def test_fit_trains_every_unit(store: Path) -> None:
    with Store.open(store) as opened:
        assert len(opened.alive()) == 8


@pytest.mark.nightly
def test_units_can_be_trained_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["s3t"])
    assert main([*FIT, f"--s3t.store={tmp_path / 'store'}", "--s3t.parallel_units=2"]) == 0
    with Store.open(tmp_path / "store") as opened:
        assert len(opened.alive()) == 8


def test_without_a_logger_no_file_is_written_beside_the_store(fitted: Path) -> None:
    assert {path.name for path in fitted.parent.iterdir()} == {"store"}


def test_with_a_logger_the_config_lies_beside_the_logs(store: Path, tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    assert main([*FIT, f"--s3t.store={store}", *logger]) == 0
    assert len(list(tmp_path.glob("lightning_logs/*/config.yaml"))) == 1


def test_arguments_that_are_passed_on_are_no_reason_for_a_warning(
    store: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(sys, "argv", ["s3t", "test", "--store", str(store)])
    assert main(["test", "--store", str(store)]) == 0
    assert not [warning for warning in recwarn if "args parameter" in str(warning.message)]


def test_the_store_remembers_its_config_and_test_needs_nothing_more(store: Path, capsys: Output) -> None:
    assert main(["test", "--store", str(store)]) == 0
    out = capsys.readouterr().out
    assert "test_accuracy" in out
    assert "is_an_ensemble" in out
    assert "2.0" in out


def test_what_is_served_follows_a_request(store: Path, capsys: Output) -> None:
    with Store.open(store) as opened:
        gone = {owner for owner in People.make().owners if opened.partition.place(owner).shard == 0}
        opened.forget(gone)
    assert main(["test", "--store", str(store)]) == 0
    assert "1.0" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_validate_and_predict_use_the_ensemble_too(store: Path, verb: str) -> None:
    assert main([verb, "--store", str(store)]) == 0


def test_predictions_that_are_not_written_are_warned_of(store: Path) -> None:
    with pytest.warns(UserWarning, match="has no BasePredictionWriter"):
        main(["predict", "--store", str(store)])


def test_options_after_the_store_override_its_config(store: Path, capsys: Output) -> None:
    assert main(["test", "--store", str(store), "--data.people=10"]) == 0
    assert "test_accuracy" in capsys.readouterr().out


def test_how_the_ensemble_answers_is_chosen_where_it_is_served(store: Path, capsys: Output) -> None:
    found = []
    for options in ([], ["--serving.aggregate=vote"]):
        assert main(["test", "--store", str(store), *options]) == 0
        found += re.findall(r"answers_by_vote\s+\S\s+(\d\.\d)", capsys.readouterr().out)
    assert found == ["0.0", "1.0"]


def test_a_store_that_was_moved_is_served_from_where_it_is(store: Path, tmp_path: Path) -> None:
    store.rename(tmp_path / "moved")
    assert main(["test", "--store", str(tmp_path / "moved")]) == 0


def test_a_survivor_is_exported_with_the_store_alone(store: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["export", str(store), str(tmp_path / "model.safetensors"), "--json"]) == 0
    [exported] = json.loads(capsys.readouterr().out)
    assert {path.name for path in tmp_path.glob("model.*")} == {"model.safetensors", "model.json"}
    people = [f"user-{number}" for number in range(40)]
    assert main(["forget", str(store), *people, "--json"]) == 0
    output = capsys.readouterr()
    assert "exports" not in json.loads(output.out)  # a name tells a place
    assert f"Erased exported copies: {exported['name']}." in output.err
    assert main(["receipt", "list", str(store), "--internal"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["exports"] == [exported["name"]]
    assert not list(tmp_path.glob("model.*"))


def test_the_audit_needs_the_store_alone(store: Path, capsys: Output) -> None:
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    capsys.readouterr()
    assert main(["store", "audit", str(store), "--units", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert len(report["units"]) == 2


def test_only_the_report_is_on_the_audits_standard_output(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    callback = [f"--s3t.store={tmp_path / 'store'}", "--trainer.enable_model_summary=true"]
    for command in ([*FIT, *callback], ["store", "audit", "store", "--units", "1", "--json"]):
        run = subprocess.run(
            [sys.executable, "-m", "lightning_s3t", *command],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert json.loads(run.stdout)["passed"]
    assert "Trainable params" in run.stderr  # of the process that trains the units


def test_a_store_from_a_script_remembers_no_config(tmp_path: Path, capsys: Output) -> None:
    fit(tmp_path / "store", People.make(), budget=1, epochs=1)
    with pytest.raises(StoreError, match="has no config"):
        stored_config(tmp_path / "store")
    assert main(["test", "--store", str(tmp_path / "store")]) == 2
    assert "--config config.yaml" in capsys.readouterr().err


def test_an_apps_own_config_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    callback = [option.replace("--s3t.", "--trainer.callbacks.") for option in CALLBACK]
    app = [option for option in FIT if option not in CALLBACK]
    LightningCLI(
        args=[
            *app,
            "--trainer.callbacks+=lightning_s3t.S3T",
            f"--trainer.callbacks.store={tmp_path / 'store'}",
            *callback,
        ]
    )
    assert main(["test", "--store", str(tmp_path / "store")]) == 0
    assert "is_an_ensemble" in capsys.readouterr().out


@pytest.mark.nightly
def test_modules_in_the_current_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "somebodys_app.py").write_text(f"from {HERE} import Served, Data\n")
    command = [sys.executable, "-m", "lightning_s3t", *FIT, "--s3t.store=store", "--s3t.budget=1"]
    command = [part.replace(f"{HERE}.", "somebodys_app.") for part in command]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    test = [sys.executable, "-m", "lightning_s3t", "test", "--store", "store"]
    run = subprocess.run(test, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=300)
    assert "test_accuracy" in run.stdout


def test_fits_help_explains_the_callbacks_arguments(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["s3t"])
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--s3t.budget" in out
    assert "Number of sequences of the slices" in " ".join(out.split())


def test_a_config_can_be_printed_and_read_back(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["s3t"])
    monkeypatch.chdir(tmp_path)
    options = [*FIT, f"--s3t.store={tmp_path / 'store'}"]
    with pytest.raises(SystemExit):
        main([*options, "--print_config"])
    printed = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    assert capsys.readouterr().out == printed
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    assert (tmp_path / "store").is_dir()
