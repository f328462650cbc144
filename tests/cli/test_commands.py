"""The `s3t` command."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from lightning_s3t.cli import main
from lightning_s3t.cli.audit import audit
from lightning_s3t.cli.compare import compare
from lightning_s3t.cli.correcting import rectify, release, restrict
from lightning_s3t.cli.demo import demo
from lightning_s3t.cli.forget import forget
from lightning_s3t.cli.layers import layers
from lightning_s3t.cli.plan import plan
from lightning_s3t.cli.receipts import list_receipts, verify_receipt
from lightning_s3t.cli.simulate import simulate
from lightning_s3t.cli.status import status
from lightning_s3t.cli.store import pending, provenance, rotate_key, verify
from lightning_s3t.plan import harmonic
from lightning_s3t.store import Store
from tests.people import People, fit
from tests.tiers import nightly_except


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("cli") / "store"
    fit(store, People.make(), epochs=1)
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


Output = pytest.CaptureFixture[str]
COMMANDS = {
    "demo": demo,
    "layers": layers,
    "plan": plan,
    "simulate": simulate,
    "compare": compare,
    "forget": forget,
    "rectify": rectify,
    "restrict": restrict,
    "release": release,
    "receipt list": list_receipts,
    "receipt verify": verify_receipt,
    "store status": status,
    "store verify": verify,
    "store audit": audit,
    "store provenance": provenance,
    "store pending": pending,
    "store rotate-key": rotate_key,
}


def test_forget_revokes_and_says_what(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "user-3", "user-4"]) == 0
    assert "Request 1, to forget: 2 subjects" in capsys.readouterr().out
    with Store.open(store) as opened:
        assert opened.forgotten(["user-3", "user-4", "user-5"]) == {"user-3", "user-4"}


def test_forget_prints_its_receipt_as_json(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "user-3", "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["request"] == 1
    assert main(["receipt", "list", str(store)]) == 0
    assert json.loads(capsys.readouterr().out) == [receipt]


def test_an_unknown_subject_is_an_error_unless_allowed(store: Path, capsys: Output) -> None:
    assert main(["forget", str(store), "nobody"]) == 2
    assert "has never seen 'nobody'" in capsys.readouterr().err
    assert main(["forget", str(store), "nobody", "--allow-unknown"]) == 0
    assert "1 never seen" in capsys.readouterr().out


def test_status_shows_who_serves_and_what_is_revoked(store: Path, capsys: Output) -> None:
    assert main(["store", "status", str(store)]) == 0
    told = capsys.readouterr().out
    assert told.count("●●") == 2
    assert "Shards that serve: 2 of 2" in told
    everyone = sorted(set(People.make().owners))
    main(["forget", str(store), *everyone])
    capsys.readouterr()
    assert main(["store", "status", str(store)]) == 0
    told = capsys.readouterr().out
    assert "●" not in told.split("● serves")[0]
    assert "Shards that serve: 0 of 2" in told
    assert "Call fit with the same store" in told


def test_provenance_is_json(store: Path, capsys: Output) -> None:
    assert main(["store", "provenance", str(store)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8
    assert main(["store", "provenance", str(store), "--unit", "1/1-0"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["prefix"] == [1, 0]
    assert main(["store", "provenance", str(store), "--unit", "1-1"]) == 2
    assert "'1-1' is not a unit" in capsys.readouterr().err


def test_layers_of_a_timm_model(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["layers", "test_vit", "3", "--rank", "4"]) == 0
    told = capsys.readouterr().out
    assert "group 3" in told
    assert "LORA (r=4)" in told
    assert "timm group_matcher" in told


def test_layers_as_json_have_every_block(capsys: Output) -> None:
    assert main(["layers", "test_vit", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == ["head", "group 1", "group 2", "frozen"]
    assert all(row["modules"] for row in rows)


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
        pytest.param(
            "owner/model-of-nobody",
            "The model 'owner/model-of-nobody' was not found on this machine or on the hub",
            marks=pytest.mark.nightly,  # without a network, the hub's client tries again for 20 seconds
            id="owner/model-of-nobody",
        ),
        ("tests.people:Nobody", "tests.people:Nobody cannot be imported"),
        ("tests.people:Block", "No list of layers was found in Block"),
    ],
)
def test_layers_of_something_else(model: str, message: str, capsys: Output) -> None:
    assert main(["layers", model, "2"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "head"), [("GPT2Model", "score"), ("GPT2LMHeadModel", "lm_head")], ids=["classifier", "writer"]
)
def test_layers_of_a_transformers_model_in_a_folder(
    tmp_path: Path, capsys: Output, architecture: str, head: str
) -> None:
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 1, "vocab_size": 16, "architectures": [architecture]}
    transformers.GPT2Config(**sizes).save_pretrained(tmp_path / "gpt")
    assert main(["layers", str(tmp_path / "gpt"), "2", "--json"]) == 0
    first, *groups, _ = json.loads(capsys.readouterr().out)["rows"]
    assert first["modules"] == [head]
    assert [group["modules"] for group in groups] == [["transformer.h.1"], ["transformer.h.0"]]


def test_a_folder_that_is_no_store_is_an_error_without_a_traceback(tmp_path: Path, capsys: Output) -> None:
    assert main(["store", "status", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("s3t: There is no store")
    assert "Traceback" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_argument(command: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, parameter in inspect.signature(COMMANDS[command]).parameters.items():
        option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        shown = f"--{name.replace('_', '-')}" if option else name.upper()
        [line] = [line for line in lines if re.match(rf"│\W*{shown}\b(?!-)", line)]
        assert len(line.split()) >= 5, f"{shown} has no explanation"


def test_help_is_printed(capsys: Output) -> None:
    assert main(["forget", "--help"]) == 0
    assert "Remove subjects from the model" in capsys.readouterr().out


def test_help_groups_the_commands(capsys: Output) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for group in ("Choose before training", "Train and serve", "Forget", "Keep a store"):
        assert group in told
    for command in {name.split()[0] for name in COMMANDS} | {"fit", "validate", "test", "predict", "completion"}:
        assert f"│ {command} " in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Usage: s3t"),
        (["store"], "Usage: s3t store"),
        (["unlearn"], 'Unknown command "unlearn"'),
        (["store", "verfy", "runs/s3t"], 'Did you mean "verify"'),
        (["status", "runs/s3t"], "Did you mean s3t store status?"),
        (["verify"], "Did you mean s3t evidence verify or s3t receipt verify or s3t store verify?"),
        (["forget"], "s3t forget --help"),
        (["forget", "runs/s3t"], "Expected either the ids of subjects or --due"),
        (["forget", "runs/s3t", "user-3", "--due"], "Expected either the ids of subjects or --due"),
        (["forget", "runs/s3t", "--due", "--allow-unknown"], "Expected --due without --at and --allow-unknown"),
        (["forget", "runs/s3t", "user-3", "--at", "2999-01-31T12:00Z", "--json"], "no receipt before the request"),
        (["forget", "runs/s3t", "user-3", "--at", "2999-01-31T12:00Z", "--sign", "key.pem"], "forget STORE --due"),
        (["forget", "runs/s3t", "user-3", "--jsn"], "--jsn"),
        (["plan", "--shards", "many"], "--shards"),
    ],
)
def test_arguments_that_are_off_exit_with_2(arguments: list[str], told: str, capsys: Output) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert told in output.out + output.err


def test_ctrl_c_exits_with_130_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "app_of_somebody.py").write_text(
        "import os, signal, time\ndef make():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    # a process that a shell has started in the background ignores the signal, and so would its child
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; import sys; sys.path.append({str(tmp_path)!r}); from lightning_s3t.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "layers", "app_of_somebody:make", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, "s3t: interrupted\n")


@pytest.mark.parametrize("package", nightly_except(["rich", "cyclopts"], "cyclopts"))
def test_a_missing_package_is_named_with_what_to_install(package: str, store: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from lightning_s3t.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "store", "status", str(store)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr == f's3t: the command needs {package}: pip install "lightning-s3t[cli]"\n'


@pytest.mark.parametrize("package", nightly_except(["sklearn", "matplotlib"], "sklearn"))
def test_what_only_the_demo_needs_is_named_too(package: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from lightning_s3t.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "demo", "--quick", "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert run.stderr == f's3t: The demo needs {package}: pip install "lightning-s3t[demo]"\n'


def test_a_module_in_the_current_folder_is_found(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a console script has its own folder on the path, not the current one
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app_of_somebody.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))\n"
        "def three():\n"
        "    return 3\n"
    )
    assert main(["layers", "app_of_somebody:make", "2"]) == 0
    assert "group 2" in capsys.readouterr().out
    assert main(["layers", "app_of_somebody:three", "2"]) == 2
    assert "app_of_somebody:three gives a int" in capsys.readouterr().err


def test_a_path_with_brackets_is_shown_as_it_is(store: Path, tmp_path: Path, capsys: Output) -> None:
    odd = Path(shutil.copytree(store, tmp_path / "[red]"))
    assert main(["store", "status", str(odd)]) == 0
    assert "[red]" in capsys.readouterr().out.translate({ord(" "): None, ord("\n"): None})


def test_status_says_how_many_further_requests_it_lasts(store: Path, capsys: Output) -> None:
    # 2 shards of 2 slices on 2 orders: 4 * H(4) when full, 4 * H(k) with k first slices left
    assert main(["store", "status", str(store)]) == 0
    assert f"on average: {4 * harmonic(4):.0f}; a full store: {4 * harmonic(4):.0f}" in capsys.readouterr().out
    main(["forget", str(store), "user-3"])
    capsys.readouterr()
    assert main(["store", "status", str(store)]) == 0
    assert f"on average: {4 * harmonic(3):.0f}; a full store: {4 * harmonic(4):.0f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "`seed` to be a non-negative integer"),
        (["--epochs", "0"], "`epochs` to be a positive integer"),
    ],
)
def test_the_demo_refuses_bad_numbers_before_it_trains(
    arguments: list[str], message: str, tmp_path: Path, capsys: Output
) -> None:
    assert main(["demo", "--quick", "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_refuses_an_output_that_is_a_file(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(["demo", "--quick", "--output", str(tmp_path / "out")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_the_module_runs_as_a_command_and_its_help_needs_no_torch() -> None:
    code = "import sys; from lightning_s3t.cli import main; main(['--help']); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.endswith("False\n")
    run = subprocess.run([sys.executable, "-m", "lightning_s3t", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: s3t" in run.stdout


def test_a_plan_needs_no_torch() -> None:
    arguments = ["plan", "--shards", "2", "--slices", "3", "--budget", "2", "--layers", "12"]
    code = f"import sys; from lightning_s3t.cli import main; main({arguments}); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.endswith("False\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands_and_their_options(shell: str, capsys: Output) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in ("forget", "rotate-key", "allow-unknown", "predict"):
        assert name in script


def test_status_and_provenance_name_a_weaker_isolation(store: Path, tmp_path: Path, capsys: Output) -> None:
    fit(tmp_path / "shared", People.make(), epochs=1, isolation="none")
    for folder, isolation in ((store, "forkserver"), (tmp_path / "shared", "none")):
        assert main(["store", "status", str(folder)]) == 0
        assert ("The units were trained in one process" in capsys.readouterr().out) == (isolation == "none")
        assert main(["store", "provenance", str(folder)]) == 0
        assert {record["isolation"] for record in json.loads(capsys.readouterr().out)} == {isolation}
