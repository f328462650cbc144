"""What a unit's process cannot be given is refused before anything is changed, with the reason; the rest arrives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback

from lightning_s3t import S3T
from lightning_s3t.engine.preflight import check_trainer
from lightning_s3t.errors import ConfigurationError, StoreMismatchError, UnsupportedError
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of

NO_GUARD = """
import sys
from pathlib import Path
from tests.people import Classifier, People, fit

SCALE = 1.0
SCALE = 2.0  # as it stands when the fit begins

class Own(Classifier):
    def training_step(self, batch, batch_idx):
        return SCALE * super().training_step(batch, batch_idx)

fit(Path(sys.argv[1]) / "store", People.make(), module=Own(), parallel_units=2)
"""


class Doubled(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 2.0 * super().training_step(batch, batch_idx)


def refused(tmp_path: Path, message: str, *callbacks: Callback, module: Any = None, **arguments: Any) -> None:
    with pytest.raises(UnsupportedError, match=message):
        fit(tmp_path / "store", People.make(), *callbacks, module=module, **arguments)
    assert not (tmp_path / "store").exists()


def run(tmp_path: Path, *command: str) -> None:
    subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_a_number_of_units_that_is_none(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument `parallel_units` to be a positive integer"):
        fit(tmp_path / "store", People.make(), parallel_units=value)


def test_an_isolation_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument `isolation` to be one of"):
        fit(tmp_path / "store", People.make(), isolation="threads")


def test_what_cannot_be_sent_is_named_with_what_to_do(tmp_path: Path) -> None:
    module = Classifier()
    module.network.blocks[1].lock = threading.Lock()  # type: ignore[assignment]
    message = r"Classifier\.network\.blocks\.1\.lock \(lock\) cannot be sent.*isolation='fork'"
    refused(tmp_path, message, module=module)


def test_a_callback_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    callback = Callback()
    callback.rows = (row for row in "abc")  # type: ignore[attr-defined]
    refused(tmp_path, r"Callback\.rows.*cannot be sent", callback)


@pytest.mark.nightly
def test_what_cannot_be_sent_can_be_forked(tmp_path: Path) -> None:
    module = Classifier()
    module.lock = threading.Lock()
    fit(tmp_path / "forked", People.make(), module=module, isolation="fork")
    fit(tmp_path / "sent", People.make())
    assert_bitwise_equal(tensors_of(tmp_path / "forked"), tensors_of(tmp_path / "sent"))


@pytest.mark.nightly
def test_a_method_that_was_put_on_the_module_goes_along(tmp_path: Path) -> None:
    module = Classifier()
    step = module.training_step
    module.training_step = types.MethodType(lambda self, *args: 2.0 * step(*args), module)  # type: ignore[method-assign]
    fit(tmp_path / "put", People.make(), module=module, isolation="none")
    fit(tmp_path / "own", People.make(), module=Doubled(), isolation="none")
    assert_bitwise_equal(tensors_of(tmp_path / "put"), tensors_of(tmp_path / "own"))


@pytest.mark.parametrize(
    ("strategy", "isolation", "parallel_units", "message"),
    [
        ("ddp_spawn", "forkserver", 1, "isolation='forkserver' with a strategy that forks or spawns"),
        ("ddp", "fork", 1, "isolation='fork' with several devices"),
        ("ddp_spawn", "none", 2, "strategies that fork or spawn their processes rule out"),
    ],
)
def test_several_devices(strategy: str, isolation: Any, parallel_units: int, message: str) -> None:
    trainer = pl.Trainer(accelerator="cpu", strategy=strategy, devices=2, logger=False)
    trainer.strategy.connect(Classifier())
    with pytest.raises(UnsupportedError, match=message):
        check_trainer(trainer, S3T, isolation, parallel_units)


def test_a_store_belongs_to_one_isolation(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), isolation="none")
    with pytest.raises(StoreMismatchError, match=r"training\.isolation"):
        fit(tmp_path / "store", People.make(), isolation="fork")


@pytest.mark.nightly
@pytest.mark.parametrize("way", ["file", "command line"])
def test_a_script_needs_no_guard_and_no_file(tmp_path: Path, way: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(NO_GUARD)
    run(tmp_path, *([str(script)] if way == "file" else ["-c", NO_GUARD]))
    fit(tmp_path / "own", People.make(), module=Doubled())
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "own"))
