"""A fit that is killed goes on where it was cut, and its half-done unit leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_s3t.store import Store
from tests.people import People, assert_bitwise_equal, fit, tensors_of
from tests.tiers import nightly_except

SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
import sys, time
from pathlib import Path
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tests.people import People, fit

class Slow(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.05)

folder = Path(sys.argv[1])
checkpoints = ModelCheckpoint(dirpath=folder / "checkpoints", every_n_train_steps=1)
fit(folder / "store", People.make(), Slow(), checkpoints, trainer={"enable_checkpointing": True})
"""


@pytest.mark.parametrize("kill", nightly_except([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], signal.SIGKILL))
def test_a_killed_fit_goes_on_at_the_unit_that_was_cut(trained: Path, tmp_path: Path, kill: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
    )
    try:
        snapshots = tmp_path / "store" / "snapshots"
        deadline = time.monotonic() + 120
        # three files: the head's initial state and two units; the third unit is being trained
        while not snapshots.exists() or len(list(snapshots.glob("*.safetensors"))) < 3:
            assert process.poll() is None, "the fit ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(kill)
        process.wait(60)
    finally:
        process.kill()

    with Store.open(tmp_path / "store") as store:
        done = store.alive()
        kept = {Path(file["path"]) for record in done.values() for file in record.provenance["files"]}
    assert 2 <= len(done) < 8
    assert set((tmp_path / "checkpoints").rglob("*.ckpt")) == kept

    before = tensors_of(tmp_path / "store")
    fit(tmp_path / "store", People.make())
    after = tensors_of(tmp_path / "store")
    assert_bitwise_equal(before, {unit: after[unit] for unit in before})
    assert_bitwise_equal(after, tensors_of(trained))
