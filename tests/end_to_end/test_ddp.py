"""DDP with two processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_s3t import Floor
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.end_to_end.everything import PERSON
from tests.people import People, assert_bitwise_equal, fit, tensors_of

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
        tensors = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
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
            assert held
            assert all(torch.equal(held[name], kept[name]) for name in held)
    with Store.open(tmp_path / "store") as store:
        record = store.provenance(UnitId(0, (0,)))[0]
    assert record["settings"]["processes"] == 2
    assert record["isolation"] == ("forkserver" if strategy == "ddp" else "none")


GUARANTEE = """
import sys
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from tests.people import Classifier, People, fit

class Counts(Classifier):
    '''Keeps what a unit has seen where nothing but a process of its own keeps it from the next one.'''
    seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(float(batch[0].sum()))
        return super().training_step(batch, batch_idx) + 1e-3 * sum(self.seen) * self.network.head.weight.sum()

class Fails(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == 1 and (folder / "fail").exists():
            raise RuntimeError("the disk of rank 1 is full")

folder = Path(sys.argv[1])
if __name__ == "__main__":
    people = People.make()
    if (folder / "without").exists():
        people = people.without((folder / "without").read_text())
    fit(folder / sys.argv[2], people, Fails(), module=Counts(), parallel_units=int(sys.argv[3]),
        trainer={"strategy": "ddp", "devices": 2, "accelerator": "cpu"})
"""


def run_script(folder: Path, store: str, parallel_units: int = 1) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(GUARANTEE)
    return subprocess.run(
        [sys.executable, str(script), str(folder), store, str(parallel_units)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.nightly
def test_a_rebuild_is_a_training_from_scratch_whatever_the_ranks_keep(tmp_path: Path) -> None:
    assert run_script(tmp_path, "store").returncode == 0
    with Store.open(tmp_path / "store") as store:
        store.forget([PERSON])
    assert run_script(tmp_path, "store", parallel_units=2).returncode == 0
    (tmp_path / "without").write_text(PERSON)
    assert run_script(tmp_path, "scratch").returncode == 0
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
def test_several_units_at_once_on_several_ranks_have_the_bits_of_one_after_another(tmp_path: Path) -> None:
    assert run_script(tmp_path, "one").returncode == 0
    assert run_script(tmp_path, "three", parallel_units=3).returncode == 0
    assert_bitwise_equal(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "three"))


@pytest.mark.nightly
@pytest.mark.parametrize("parallel_units", [1, 3])
def test_an_error_on_one_rank_ends_the_fit_on_all(tmp_path: Path, parallel_units: int) -> None:
    (tmp_path / "fail").touch()
    result = run_script(tmp_path, "store", parallel_units)
    assert result.returncode != 0
    assert "the disk of rank 1 is full" in result.stderr
    assert tensors_of(tmp_path / "store") == {}


FLOOR = """
import sys
from pathlib import Path
from lightning_s3t import Floor, audit
from tests.people import Classifier, People, PeopleData, fit, make_trainer

folder = Path(sys.argv[1])
floor = Floor(layers=2, width=24, survivors=True)
trainer = {"strategy": "ddp", "devices": 2, "accelerator": "cpu"}
if __name__ == "__main__":
    if sys.argv[2] == "fit":
        people = People.make()
        fit(folder / "store", people, epochs=1, floor=floor, trainer=trainer)
    else:
        data = PeopleData(People.make().without(sys.argv[3]))
        audited = make_trainer(folder / "store", epochs=1, floor=floor, trainer=trainer)
        report = audit(audited, Classifier(), datamodule=data, units="all")
        heads = ",".join(sorted(head.outcome for head in report.heads))
        (folder / f"report-{audited.global_rank}").write_text(f"{report.passed} {heads}")
"""


@pytest.mark.nightly
def test_the_floor_has_the_bits_of_one_device_and_an_audit_finds_them_on_all_ranks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FLOOR)

    def run(*arguments: str) -> None:
        result = subprocess.run(
            [sys.executable, str(script), str(tmp_path), *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]

    run("fit")
    fit(tmp_path / "alone", People.make(), epochs=1, floor=Floor(layers=2, width=24))
    with Store.open(tmp_path / "store") as store, Store.open(tmp_path / "alone") as alone:
        found, wanted = store.load_head(), alone.load_head()
        assert found is not None
        assert wanted is not None
        assert {name: tensor.tolist() for name, tensor in found.to_tensors().items()} == {
            name: tensor.tolist() for name, tensor in wanted.to_tensors().items()
        }
        assert len(store.heads()) > 1
        assert store.verify().passed
        store.forget([PERSON])
    run("audit", PERSON)
    for rank in (0, 1):
        passed, _, heads = (tmp_path / f"report-{rank}").read_text().partition(" ")
        assert passed == "True"
        assert set(heads.split(",")) == {"equal"}
