"""The `s3t` command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_s3t.cli import main
from lightning_s3t.store import Store
from tests.people import People, fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("cli") / "store"
    fit(store, People.make(), epochs=1)
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


Output = pytest.CaptureFixture[str]


def test_forget_revokes_and_says_what(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "user-3", "user-4"]) == 0
    assert "Request 1: 2 subjects" in capsys.readouterr().out
    with Store.open(store) as opened:
        assert opened.forgotten(["user-3", "user-4", "user-5"]) == {"user-3", "user-4"}


def test_forget_prints_its_receipt_as_json(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "user-3", "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["request"] == 1
    assert main(["receipts", str(store)]) == 0
    assert json.loads(capsys.readouterr().out) == [receipt]


def test_an_unknown_subject_is_an_error_unless_allowed(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "nobody"]) == 2
    assert "has never seen 'nobody'" in capsys.readouterr().err
    assert main(["forget", str(store), "nobody", "--allow-unknown"]) == 0
    assert "1 never seen" in capsys.readouterr().out


def test_status_shows_who_serves_and_what_is_revoked(store: Path, capsys: Output) -> None:
    assert main(["status", str(store)]) == 0
    told = capsys.readouterr().out
    assert told.count("●●") == 2
    assert "Shards that serve: 2 of 2" in told
    everybody = sorted(set(People.make().owners))
    main(["forget", str(store), *everybody])
    capsys.readouterr()
    assert main(["status", str(store)]) == 0
    told = capsys.readouterr().out
    assert "●" not in told.split("serves")[0]
    assert "Shards that serve: 0 of 2" in told
    assert "call fit with the same store" in told


def test_provenance_is_json(store: Path, capsys: Output) -> None:
    assert main(["provenance", str(store)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8
    assert main(["provenance", str(store), "--unit", "1/1-0"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["prefix"] == [1, 0]
    assert main(["provenance", str(store), "--unit", "1-1"]) == 2
    assert "'1-1' is no unit" in capsys.readouterr().err


def test_layers_of_a_timm_model(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["layers", "test_vit", "3", "--rank", "4"]) == 0
    told = capsys.readouterr().out
    assert "group 3" in told
    assert "LORA (r=4)" in told
    assert "timm group_matcher" in told


def test_layers_of_a_module_of_ones_own(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [
        "tests.people:Classifier",
        "2",
        "--whole-layers",
        "--layers",
        "network.blocks",
        "--head",
        "network.head",
    ]
    assert main(["layers", *arguments]) == 0
    told = capsys.readouterr().out
    assert "whole layers" in told
    assert "named by the user" in told


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_of_nobody", "timm has no model 'vit_of_nobody'"),
        ("tests.people:Nobody", "tests.people:Nobody cannot be made"),
        ("tests.people:Block", "No list of layers was found in Block"),
    ],
)
def test_layers_of_something_else(model: str, message: str, capsys: Output) -> None:
    assert main(["layers", model, "2"]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_store_is_an_error_without_a_traceback(tmp_path: Path, capsys: Output) -> None:
    assert main(["status", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("s3t: There is no store")
    assert "Traceback" not in error


@pytest.mark.parametrize("verb", ["demo", "layers", "status", "forget", "receipts", "provenance"])
def test_help_explains_every_argument(verb: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as exited:
        main([verb, "--help"])
    assert exited.value.code == 0
    told = capsys.readouterr().out
    arguments = [line for line in told.split("options:")[-1].splitlines() if line.strip().startswith("--")]
    assert all(len(line.split("  ")) > 1 for line in arguments)


def test_the_module_runs_as_a_command_and_its_help_needs_no_torch() -> None:
    code = "import sys; from lightning_s3t.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.endswith("False\n")
    run = subprocess.run([sys.executable, "-m", "lightning_s3t", "--help"], capture_output=True, text=True, check=True)
    assert "usage: s3t" in run.stdout
