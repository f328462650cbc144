"""What runs once a fit and what once a unit, and what a fit leaves in the script's process."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelSummary
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from torch import nn

from lightning_s3t.errors import UnsupportedError, WorkerError
from tests.people import Classifier, People, PeopleData, assert_bitwise_equal, fit, make_trainer, tensors_of

UNITS = 8


class Notes:
    """Notes hooks in a file, with the process that they ran in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")

    def count(self, name: str, here: bool) -> int:
        """How often a hook has run, in this process or in others."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return Counter((hook, pid == str(os.getpid())) for hook, pid in lines)[name, here]


class NotingData(PeopleData):
    def __init__(self, people: People, notes: Notes) -> None:
        super().__init__(people)
        self.notes = notes

    def prepare_data(self) -> None:
        self.notes.add("data.prepare_data")

    def setup(self, stage: str) -> None:
        self.notes.add("data.setup")

    def teardown(self, stage: str) -> None:
        self.notes.add("data.teardown")


class NotingClassifier(Classifier):
    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self.notes = notes

    def setup(self, stage: str) -> None:
        self.notes.add("module.setup")

    def configure_model(self) -> None:
        self.notes.add("module.configure_model")

    def configure_optimizers(self) -> Any:
        self.notes.add("module.configure_optimizers")
        self.made = True
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        self.notes.add("module.on_fit_start")

    def on_fit_end(self) -> None:
        self.notes.add("module.on_fit_end")

    def teardown(self, stage: str) -> None:
        self.notes.add("module.teardown")


class NotingCallback(Callback):
    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def setup(self, *_: Any, **__: Any) -> None:
        self.notes.add("callback.setup")

    def on_sanity_check_start(self, *_: Any, **__: Any) -> None:
        self.notes.add("callback.on_sanity_check_start")

    def teardown(self, *_: Any, **__: Any) -> None:
        self.notes.add("callback.teardown")


def test_setup_runs_once_and_a_unit_has_a_whole_fit_of_its_own(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.txt")
    trainer = make_trainer(tmp_path / "store", NotingCallback(notes))
    trainer.fit(NotingClassifier(notes), datamodule=NotingData(People.make(), notes))

    once = ("data.prepare_data", "data.setup", "module.setup", "module.configure_model")
    for hook in (*once, "data.teardown", "module.teardown"):
        assert (notes.count(hook, here=True), notes.count(hook, here=False)) == (1, 0), hook
    for hook in ("callback.setup", "callback.teardown"):
        assert (notes.count(hook, here=True), notes.count(hook, here=False)) == (1, UNITS + 1), hook
    assert notes.count("module.on_fit_start", here=True) == 0
    assert notes.count("module.on_fit_start", here=False) == UNITS + 1
    assert notes.count("module.on_fit_end", here=False) == UNITS
    assert notes.count("callback.on_sanity_check_start", here=False) == 1
    assert trainer.state.finished


def test_the_scripts_module_is_not_touched(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.txt")
    module = NotingClassifier(notes)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    attributes = set(vars(module))
    numbers = torch.get_rng_state()
    fit(tmp_path / "store", People.make(), module=module)
    after = module.state_dict(keep_vars=True)
    assert all(after[name] is not None and id(after[name]) == key for name, (key, _) in before.items())
    assert all(torch.equal(after[name], tensor) for name, (_, tensor) in before.items())
    assert set(vars(module)) - attributes <= {"_trainer"}
    assert notes.count("module.configure_optimizers", here=True) == 0
    assert torch.equal(torch.get_rng_state(), numbers)


class FailsAtFirstBatch(Classifier):
    def on_fit_start(self) -> None:
        raise RuntimeError("no connection to the license server")


class FailsInSanityCheck(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("the metric takes no logits")


@pytest.mark.parametrize("kind", [FailsAtFirstBatch, FailsInSanityCheck])
def test_what_a_rehearsal_finds_is_raised_before_there_is_a_store(kind: type[Classifier], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"license server|takes no logits"):
        fit(tmp_path / "store", People.make(), module=kind())
    assert not (tmp_path / "store").exists()


class HasNoOptimizer(Classifier):
    def configure_optimizers(self) -> Any:
        return None


class Memory(pl.LightningModule):
    """Keeps features, and is trained by no gradient; no layers to train are found in it."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Linear(8, 4)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.extractor(batch[0])

    def configure_optimizers(self) -> None:
        return None


class CollectsParametersTooEarly(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.collected = list(self.parameters())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.collected, lr=0.01)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (HasNoOptimizer, "returns no optimizer"),
        (Memory, "returns no optimizer: the module is fitted without gradients"),
        (CollectsParametersTooEarly, "parameters from before the layers"),
    ],
)
def test_optimizers_are_refused_before_there_is_a_store(
    kind: type[pl.LightningModule], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        fit(tmp_path / "store", People.make(), module=kind())
    assert not (tmp_path / "store").exists()


@pytest.fixture
def drawing_package() -> Iterator[str]:
    """An installed package that draws numbers as it is imported."""
    name = f"draws_at_import_{os.getpid()}"
    path = Path(sysconfig.get_path("purelib"), f"{name}.py")
    path.write_text("import torch\nTABLE = torch.randn(4)\n")
    yield name
    path.unlink()


class ImportsInAStep(Classifier):
    def __init__(self, package: str) -> None:
        super().__init__()
        self.package = package

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        importlib.import_module(self.package)
        return super().training_step(batch, batch_idx) * (1 + 0.1 * torch.rand(()))


@pytest.mark.nightly
def test_what_a_step_imports_draws_for_each_unit(tmp_path: Path, drawing_package: str) -> None:
    for number in (1, 2):
        module = ImportsInAStep(drawing_package)
        fit(tmp_path / str(number), People.make(), module=module, epochs=1, parallel_units=number)
    assert_bitwise_equal(tensors_of(tmp_path / "1"), tensors_of(tmp_path / "2"))


class WarnsInAStep(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        warnings.warn("the step is deprecated", stacklevel=1)
        return super().training_step(batch, batch_idx)


@pytest.mark.nightly
@pytest.mark.parametrize(("action", "shown"), [("ignore", 0), ("always", 1)])
def test_the_scripts_filters_decide_which_warnings_of_units_are_shown(tmp_path: Path, action: Any, shown: int) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings(action, message="the step is deprecated")
        fit(tmp_path / "store", People.make(), module=WarnsInAStep(), epochs=1)
    assert sum("the step is deprecated" in str(warning.message) for warning in seen) == shown


class KilledWhenItIsTried(Classifier):
    def on_fit_start(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rehearsal_that_dies_is_an_error_with_its_signal(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="SIGKILL"):
        fit(tmp_path / "store", People.make(), module=KilledWhenItIsTried())
    assert not (tmp_path / "store").exists()


class Remembers(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


@pytest.mark.nightly
def test_the_end_of_a_fit_names_what_callbacks_kept_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path / "store", People.make(), Remembers())
    (line,) = [record.message for record in caplog.records if "kept data in memory" in record.message]
    assert "Remembers.losses" in line


@pytest.mark.nightly
def test_the_model_summary_is_shown_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    fit(tmp_path / "store", People.make(), ModelSummary(), trainer={"enable_model_summary": True})
    shown = capfd.readouterr()
    assert (shown.out + shown.err).count("Trainable params") == 1


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [SimpleProfiler, PyTorchProfiler])
@pytest.mark.parametrize("isolation", ["forkserver", "fork"])
def test_a_profiler_writes_a_file_for_each_unit(tmp_path: Path, kind: Any, isolation: str) -> None:
    profiler = kind(dirpath=tmp_path / "profiles", filename="times")
    fit(tmp_path / "store", People.make(), isolation=isolation, trainer={"profiler": profiler})
    files = list((tmp_path / "profiles").glob("fit-times-unit-*.txt"))
    assert len(files) == UNITS
    assert all("Profiler Report" in file.read_text() for file in files)


class HalfPrecision(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(1), requires_grad=False)


@pytest.mark.nightly
def test_true_half_precision(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), module=HalfPrecision(), trainer={"precision": "bf16-true"})
    kinds = {tensor.dtype for tensors in tensors_of(tmp_path / "store").values() for tensor in tensors.values()}
    assert torch.bfloat16 in kinds


# --- SLURM ---

ON_SLURM = """
import os, sys, time
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from tests.people import People, fit

class Slow(Callback):
    def on_train_batch_end(self, *args):
        (folder / "training").touch()
        time.sleep(0.1)

folder = Path(sys.argv[1])
if __name__ == "__main__":
    fit(folder / "store", People.make(), Slow(), trainer={"default_root_dir": folder})
"""


@pytest.mark.nightly
def test_slurm_requeues_the_job_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ON_SLURM)
    command = tmp_path / "scontrol"
    command.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued.txt\n")
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    script = subprocess.Popen(
        [sys.executable, "app.py", str(tmp_path)], cwd=tmp_path, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "training").exists():
        assert script.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(script.pid, signal.SIGUSR1)  # as SLURM does: to every process of the job
    assert script.wait(120) == 0
    assert (tmp_path / "requeued.txt").read_text() == "requeue 17\n"
    assert not list(tmp_path.glob("*.ckpt"))
    assert len(tensors_of(tmp_path / "store")) == UNITS
