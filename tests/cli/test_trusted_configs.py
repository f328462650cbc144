"""A config that a store remembers is code: it is not run unless its user has used it or says so."""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lightning_s3t.cli import main
from lightning_s3t.cli.audit import load_app
from lightning_s3t.store import Store
from lightning_s3t.store.keys.trusted_configs import is_trusted, trust
from tests.store.people_store import make, session

Output = pytest.CaptureFixture[str]

QUESTION = "Do you trust whoever made this store? [y/N]"

CALLS_A_FUNCTION = """
trainer:
  logger: false
  callbacks:
  - class_path: lightning.pytorch.callbacks.LambdaCallback
    init_args: {setup: payload.run}
model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}
data: {class_path: lightning.pytorch.demos.boring_classes.BoringDataModule}
"""
PLAIN = """
trainer: {logger: false, accelerator: cpu}
model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}
data: {class_path: lightning.pytorch.demos.boring_classes.BoringDataModule}
s3t: {shards: 1, slices: 2, budget: 1, subjects: index}
"""
# the class is imported, and its arguments are then found to be wrong
NAMES_A_CLASS = "model: {class_path: payload.Model, init_args: {none: of_that_name}}\n"
PAYLOAD = """
from pathlib import Path
Path({mark!r}).touch()
from lightning.pytorch import LightningModule

class Model(LightningModule):
    pass

def run(*args, **kwargs):
    pass
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has never trained anything, at work in a folder with a module."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.setattr(sys, "argv", ["s3t"])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    sys.modules.pop("payload", None)
    return tmp_path / "work"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What the stranger's code leaves when it runs."""
    return tmp_path / "it has run"


def gift(folder: Path, options: Mapping[str, object]) -> Path:
    with make(folder) as store:
        session(store).note_options({"sequences": [[0, 1, 2]], **options})
    return folder


COMMANDS = [["test", "--store"], ["predict", "--store"], ["store", "audit"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "options",
    [
        {"config": CALLS_A_FUNCTION},
        {"config": NAMES_A_CLASS},
        {"config": "model: {}\n", "classes": {"model": "payload.Model"}},
        {"config": "model: '{class_path: payload.Model}'\n"},
        {"config": "model: payload.yaml\n"},
        {"config": 'model: {class_path: "payl\\x6fad\\x2eModel"}\n'},
        {"config": "model: {class_path: &a [payload.Model]}\ndata: *a\n"},
    ],
    ids=["a function", "a class", "a class beside it", "as text", "a file", "escaped", "an anchor"],
)
def test_a_strangers_config_imports_nothing(
    command: list[str], options: Mapping[str, object], tmp_path: Path, home: Path, mark: Path, capsys: Output
) -> None:
    (home / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    store = gift(tmp_path / "gift", options)
    assert main([*command, str(store)]) == 2
    assert not mark.exists()
    error = capsys.readouterr().err
    assert "You have not used the config" in error
    assert "payload" in error
    assert "--trust-config" in error


def test_a_config_of_our_own_classes_asks_too(tmp_path: Path, capsys: Output) -> None:
    store = gift(tmp_path / "gift", {"config": "data: {class_path: lightning_s3t.zoo.datamodules.Digits}\n"})
    assert main(["test", "--store", str(store)]) == 2
    assert "what it names: lightning_s3t alone" in capsys.readouterr().err


def test_a_name_in_other_letters_is_shown(tmp_path: Path, capsys: Output) -> None:
    store = gift(tmp_path / "gift", {"config": "model: {class_path: \u00e9vil.Model}\n"})
    assert main(["test", "--store", str(store)]) == 2
    assert "\u00e9vil.Model" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["[1, 2]\n", "text\n", "a: [\n", "x: !!python/name:os.system\n"])
def test_a_config_that_is_none_is_an_error_of_ours(tmp_path: Path, capsys: Output, config: str) -> None:
    store = gift(tmp_path / "gift", {"config": config})
    assert main(["test", "--store", str(store), "--trust-config"]) == 2
    assert "config" in capsys.readouterr().err


def test_an_export_takes_the_flag_that_its_message_names(
    tmp_path: Path, home: Path, mark: Path, capsys: Output
) -> None:
    (home / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    store = gift(tmp_path / "gift", {"config": NAMES_A_CLASS})
    assert main(["export", str(store), str(tmp_path / "model.safetensors")]) == 2
    assert "--trust-config" in capsys.readouterr().err
    assert not mark.exists()
    with pytest.raises(SystemExit):
        main(["export", str(store), str(tmp_path / "model.safetensors"), "--trust-config"])
    assert mark.exists()
    capsys.readouterr()


def test_trust_is_never_looked_for_where_one_happens_to_be(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder is to be passed over (XDG Base Directory Specification): a stranger may have filled it."""
    trust({"config": NAMES_A_CLASS})
    shutil.copytree(tmp_path / "state", home / "state")
    monkeypatch.setenv("HOME", str(tmp_path / "another home"))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert not is_trusted({"config": NAMES_A_CLASS})


def test_a_line_that_a_crash_has_cut_takes_no_other_config_along(tmp_path: Path) -> None:
    trust({"config": NAMES_A_CLASS})
    (noted,) = (tmp_path / "state").rglob("trusted_configs")
    for cut in range(65):
        noted.write_bytes(noted.read_bytes()[:65] + noted.read_bytes()[:cut])
        trust({"config": CALLS_A_FUNCTION})
        assert is_trusted({"config": CALLS_A_FUNCTION})
        assert is_trusted({"config": NAMES_A_CLASS})
        noted.write_bytes(noted.read_bytes()[:65])


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_who_says_so_runs_it_and_is_not_asked_again(
    command: list[str], tmp_path: Path, home: Path, mark: Path, capsys: Output
) -> None:
    (home / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    store = gift(tmp_path / "gift", {"config": NAMES_A_CLASS})
    for options in (["--trust-config"], []):
        with pytest.raises(SystemExit):  # the config is wrong, which shows once it has been run
            main([*command, str(store), *options])
        assert mark.exists()
        mark.unlink()
        sys.modules.pop("payload")
    capsys.readouterr()


def test_lightning_does_not_warn_of_the_arguments_of_s3t(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    store = gift(tmp_path / "gift", {"config": PLAIN})
    monkeypatch.setattr(sys, "argv", ["s3t", "store", "audit", str(store)])
    assert type(load_app(store, trust_config=True).model).__name__ == "BoringModel"
    assert not [warning for warning in recwarn if "LightningCLI's args" in str(warning.message)]


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_at_a_terminal_it_is_asked(
    answer: str, runs: bool, tmp_path: Path, home: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    store = gift(tmp_path / "gift", {"config": NAMES_A_CLASS})
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r+b", buffering=0) as terminal:
        monkeypatch.setattr(sys, "stdin", open(terminal.fileno(), closefd=False))  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", open(terminal.fileno(), "w", closefd=False))  # noqa: SIM115
        os.write(ours, answer.encode())
        if runs:
            with pytest.raises(SystemExit):
                main(["test", "--store", str(store)])
        else:
            assert main(["test", "--store", str(store)]) == 2
        sys.stderr.flush()
        shown = ""
        while QUESTION not in shown and select.select([ours], [], [], 10)[0]:  # a terminal gives what it has so far
            shown += os.read(ours, 65_536).decode()
    os.close(ours)
    assert mark.exists() == runs
    assert "payload.Model" in shown
    assert QUESTION in shown


@pytest.mark.parametrize("where", [".", "snapshots"])
def test_no_module_is_taken_from_the_stores_folder(
    where: str, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    store = gift(tmp_path / "gift", {"config": NAMES_A_CLASS})
    (store / where / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    monkeypatch.chdir(store / where)
    with pytest.raises(SystemExit):
        main(["test", "--store", str(store), "--trust-config"])
    assert not mark.exists()
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as with python -m
    assert main(["test", "--store", str(store), "--trust-config"]) == 2
    assert not mark.exists()
    assert "Run the command from another folder" in capsys.readouterr().err


def test_trust_is_of_a_text_and_not_of_a_store(tmp_path: Path) -> None:
    with Store.open(gift(tmp_path / "gift", {"config": NAMES_A_CLASS})) as store:
        trust(store.options)
        assert is_trusted(store.options)
        session(store).note_options({"config": CALLS_A_FUNCTION})
        assert not is_trusted(store.options)
        session(store).note_options({"config": NAMES_A_CLASS, "classes": {"data": "payload.Data"}})
        assert not is_trusted(store.options)
        session(store).note_options({"config": NAMES_A_CLASS, "sequences": [[1, 0]]})
        assert is_trusted(store.options)


def test_where_nothing_can_be_noted_it_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file"))
    trust({"config": NAMES_A_CLASS})
    assert not is_trusted({"config": NAMES_A_CLASS})


def test_what_is_noted_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    trust({"config": NAMES_A_CLASS})
    (noted,) = (tmp_path / "state").rglob("trusted_configs")
    assert noted.stat().st_mode & 0o077 == 0
    shutil.rmtree(tmp_path / "state")
    assert not is_trusted({"config": NAMES_A_CLASS})
