"""`s3t compare`, on a config and on the demo's digits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_s3t import Comparison
from lightning_s3t.cli import main
from tests.people import Classifier, People, PeopleData

Output = pytest.CaptureFixture[str]
HERE = "tests.cli.test_compare"
CONFIG = f"""
trainer: {{max_epochs: 1, accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false}}
model: {HERE}.Module
data: {HERE}.Data
s3t: {{store: untouched, shards: 2, slices: 2, budget: 1, subjects: owners, adapter: null}}
"""


class Module(Classifier):
    pass


class Data(PeopleData):
    def __init__(self) -> None:
        super().__init__(People.make())


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["s3t"])
    (tmp_path / "app.yaml").write_text(CONFIG)
    return tmp_path / "app.yaml"


def test_methods_of_a_config_are_compared_and_written_down(config: Path, capsys: Output) -> None:
    command = ["compare", "--config", str(config), "--methods", "sisa,s3t", "--requests", "1", "--output", "found"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Accuracy and forgetting" in shown
    assert "found/comparison.json" in shown
    found = Comparison.from_json(Path("found/comparison.json").read_text())
    assert [one.label for one in found.methods] == ["retrain", "sisa", "s3t"]
    assert found["s3t"].arguments.startswith("S3TMethod(shards=2, slices=2, budget=1")
    assert found["sisa"].arguments.startswith("SISA(shards=2, slices=2")
    assert Path("found/comparison.md").read_text() == found.to_markdown()
    assert Path("found/comparison.png").stat().st_size > 1000
    assert not Path("untouched").exists()
    assert main([*command, "--json"]) == 0  # all is done: it is shown again
    assert json.loads(capsys.readouterr().out)["methods"] == json.loads(found.to_json())["methods"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "s3t,amnesia"], "There is no method 'amnesia'"),
        (["--requests", "40"], "from 1 to 39 but got 40"),
        (["--methods", "methods.yaml"], "There is no file methods.yaml"),
        (["--quick"], "Expected --quick without --config"),
    ],
)
def test_bad_input_is_refused(config: Path, capsys: Output, arguments: list[str], message: str) -> None:
    assert main(["compare", "--config", str(config), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("s3t-comparison").exists()


def test_a_config_has_to_be_there(tmp_path: Path, capsys: Output) -> None:
    assert main(["compare", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "There is no config" in capsys.readouterr().err
    assert main(["compare", "--model", "my_app:Model"]) == 2
    assert "Expected --config together with --model" in capsys.readouterr().err


def test_methods_come_from_a_file_too(config: Path, capsys: Output) -> None:
    Path("methods.yaml").write_text("strong: {name: ssd, alpha: 2.0}\nweak: {name: ssd, gamma: 1}\n")
    assert main(["compare", "--config", str(config), "--methods", "methods.yaml"]) == 2
    assert "The method 'ssd' does not take these arguments" in capsys.readouterr().err
    Path("methods.yaml").write_text("ssd")
    assert main(["compare", "--config", str(config), "--methods", "methods.yaml"]) == 2
    assert "methods.yaml holds str" in capsys.readouterr().err


@pytest.mark.nightly
def test_without_a_config_the_digits_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--quick", "--requests", "2", "--methods", "s3t,ssd"]) == 0
    assert "ssd" in capsys.readouterr().out
