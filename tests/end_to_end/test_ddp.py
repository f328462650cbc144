"""DDP with two processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.people import tensors_of

SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from tests.people import People, fit

class Dump(Callback):
    '''Writes what each rank holds when a unit ends, and the gradients' agreement on the way.'''
    def on_train_end(self, trainer, pl_module):
        s3t = trainer.callbacks[0]
        tensors = s3t.unfreezing.stage.snapshot()
        name = str(s3t.current_unit).replace("/", "_")
        save_file(tensors, Path(sys.argv[1]) / f"rank{trainer.global_rank}-{name}.safetensors")

if __name__ == "__main__":
    fit(
        Path(sys.argv[1]) / "store", People.make(), Dump(),
        trainer={"strategy": sys.argv[2], "devices": 2, "accelerator": "cpu"},
    )
"""


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize(
    ("strategy", "launcher"),
    [
        pytest.param("ddp", [], id="subprocesses"),
        pytest.param("ddp_spawn", [], marks=pytest.mark.nightly, id="spawn"),
        pytest.param("ddp_fork", [], marks=pytest.mark.nightly, id="fork"),  # also that of notebooks
        pytest.param("ddp", TORCHRUN, marks=pytest.mark.nightly, id="torchrun"),
    ],
)
def test_every_rank_trains_the_same_snapshots(tmp_path: Path, strategy: str, launcher: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path), strategy],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    tensors = tensors_of(tmp_path / "store")
    assert len(tensors) == 8
    for unit, kept in tensors.items():
        for rank in (0, 1):
            held = load_file(tmp_path / f"rank{rank}-{str(unit).replace('/', '_')}.safetensors")
            assert held.keys() == kept.keys()
            assert all(torch.equal(held[name], kept[name]) for name in kept)
    with Store.open(tmp_path / "store") as store:
        assert store.provenance(UnitId(0, (0,)))[0]["settings"]["processes"] == 2
