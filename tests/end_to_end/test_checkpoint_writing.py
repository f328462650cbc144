"""Checkpoints are written by way of the store, at once: none comes to light when its unit is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from lightning_s3t.errors import UnsupportedError
from lightning_s3t.store import Store
from tests.people import People, fit
from tests.tiers import nightly_except

KILLED_BEFORE_THE_CHECKPOINT_IS_MOVED = """
import os, signal, sys, time
from pathlib import Path
import fsspec.implementations.local as local
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tests.people import People, fit

SCRIPT = os.getpid()

class Killed(Callback):
    def on_train_start(self, trainer, module):
        def commit(opener):
            os.kill(SCRIPT, signal.SIGKILL)
            time.sleep(60)
        local.LocalFileOpener.commit = commit

    def __reduce__(self):
        return make_killed, (SCRIPT,)

def make_killed(script):
    global SCRIPT
    SCRIPT = script
    return Killed()

folder = Path(sys.argv[1])
checkpoints = ModelCheckpoint(dirpath=folder / "checkpoints", every_n_train_steps=1)
trainer = {"enable_checkpointing": True}
fit(folder / "store", People.make(), Killed(), checkpoints, trainer=trainer, isolation=sys.argv[2])
"""


@pytest.mark.parametrize("isolation", nightly_except(["forkserver", "fork", "none"]))
def test_a_kill_while_a_checkpoint_is_written_leaves_nothing(tmp_path: Path, isolation: str) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_CHECKPOINT_IS_MOVED, str(tmp_path), isolation],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    half_written = [path for path in tmp_path.glob("store/scratch/*/*") if path.stat().st_size > 10_000]
    assert len(half_written) == 1  # or the test would prove nothing
    assert not [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    wait_until_cleared(tmp_path / "store")
    assert list((tmp_path / "checkpoints").rglob("*.ckpt")) == []


def wait_until_cleared(store: Path) -> None:
    deadline = time.monotonic() + 10  # a unit's process notices within half a second that its script has died
    while (store / "scratch").exists() and time.monotonic() < deadline:
        Store.open(store).close()
        time.sleep(0.1)
    assert not (store / "scratch").exists()


@pytest.mark.parametrize("isolation", ["forkserver", "none"])
def test_a_checkpoint_does_not_tell_how_many_rows_earlier_units_had(tmp_path: Path, isolation: str) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_top_k=-1)
    trainer = {"enable_checkpointing": True}
    fit(tmp_path / "store", People.make(), checkpoint, trainer=trainer, epochs=1, isolation=isolation)
    found = [torch.load(path, weights_only=False) for path in (tmp_path / "checkpoints").rglob("*.ckpt")]
    stepped = [loaded["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] for loaded in found]
    assert stepped == [loaded["global_step"] for loaded in found]
    assert len(found) == 8


class Slow(TorchCheckpointIO):
    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.2)
        super().save_checkpoint(*args, **kwargs)


@pytest.mark.parametrize("isolation", ["forkserver", "none"])
def test_an_asynchronous_writer_is_waited_for(tmp_path: Path, isolation: str) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    trainer = {"enable_checkpointing": True, "plugins": [AsyncCheckpointIO(Slow())]}
    fit(tmp_path / "store", People.make(), checkpoint, trainer=trainer, epochs=1, budget=1, isolation=isolation)
    with Store.open(tmp_path / "store") as store:
        kept = {file["path"] for record in store.alive().values() for file in record.provenance["files"]}
        assert {str(path) for path in (tmp_path / "checkpoints").rglob("*.ckpt")} == kept != set()
        store.forget(People.make().owners)
    assert list((tmp_path / "checkpoints").rglob("*.ckpt")) == []


class InTheBackground(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super_save = super().save_checkpoint
        threading.Timer(1.0, lambda: super_save(checkpoint, path, storage_options)).start()


def test_a_plugin_that_writes_later_is_refused(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints")
    trainer = {"enable_checkpointing": True, "plugins": [InTheBackground()]}
    with pytest.raises(UnsupportedError, match=r"InTheBackground returned before it had written"):
        fit(tmp_path / "store", People.make(), checkpoint, trainer=trainer, epochs=1, budget=1)
