"""What cannot be trained in several processes is refused before anything is changed, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_s3t.errors import ConfigurationError, UnsupportedError
from tests.people import Classifier, People, fit

NO_GUARD = """
import sys
from pathlib import Path
from tests.people import People, fit
fit(Path(sys.argv[1]) / "store", People.make(), parallel_units=2)
"""
NOTEBOOK = """
import sys
from pathlib import Path
from tests.people import Classifier, People, fit

class Own(Classifier):
    pass

fit(Path(sys.argv[1]) / "store", People.make(), module=Own(), parallel_units=2)
"""


def refused(tmp_path: Path, message: str, *callbacks: Callback, module: Any = None, **trainer: Any) -> None:
    with pytest.raises(UnsupportedError, match=message):
        fit(tmp_path / "store", People.make(), *callbacks, module=module, trainer=trainer, parallel_units=2)
    assert not (tmp_path / "store").exists()


def run(tmp_path: Path, *command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    return result.stderr


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_a_number_of_units_that_is_none(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument `parallel_units` to be a positive integer"):
        fit(tmp_path / "store", People.make(), parallel_units=value)


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    module = Classifier()
    module.network.blocks[1].act = lambda x: x
    message = r"Classifier\.network\.blocks\.1\.act \(function\) cannot be sent.*top level of a module"
    refused(tmp_path, message, module=module)


def test_a_callback_that_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    callback = Callback()
    callback.rows = (row for row in "abc")  # type: ignore[attr-defined]
    callback.__class__ = type("Reader", (Callback,), {"__deepcopy__": lambda self, memo: self})
    refused(tmp_path, r"Reader.*cannot be sent", callback)


def test_a_method_that_was_put_on_the_module(tmp_path: Path) -> None:
    module = Classifier()
    module.training_step = types.MethodType(lambda self, batch, index: None, module)  # type: ignore[method-assign]
    refused(tmp_path, "cannot be sent", module=module)


@pytest.mark.parametrize("compiled", ["module", "network"])
def test_what_torch_compiles(tmp_path: Path, compiled: str) -> None:
    module = Classifier()
    if compiled == "module":
        module.compile()
    else:
        module.network = torch.compile(module.network)  # type: ignore[assignment]
    refused(tmp_path, "parallel_units with torch.compile", module=module)


@pytest.mark.nightly
def test_a_script_without_a_main_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(NO_GUARD)
    error = run(tmp_path, str(script))
    assert "below `if __name__ == '__main__':`" in error
    assert "UnsupportedError" in error


@pytest.mark.nightly
def test_a_class_of_no_file_is_named(tmp_path: Path) -> None:
    error = run(tmp_path, "-c", NOTEBOOK)
    assert "Own is defined in a notebook or on the command line, in no file" in error
    assert not (tmp_path / "store").exists()
