"""Fits that train several units at the same time, and are cut: nothing is lost, nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_s3t import S3T
from lightning_s3t.errors import WorkerError
from lightning_s3t.plan import Partition
from lightning_s3t.store import Store
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of

pytestmark = pytest.mark.nightly

SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
import os, sys, time
from pathlib import Path
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tests.people import People, fit

class Slow(Callback):
    def on_train_start(self, *args):
        (folder / f"pid-{os.getpid()}").touch()
        (folder / f"server-{os.getppid()}").touch()

    def on_train_batch_end(self, *args):
        time.sleep(0.1)

folder = Path(sys.argv[1])
if __name__ == "__main__":
    checkpoints = ModelCheckpoint(dirpath=folder / "checkpoints", every_n_train_steps=1)
    trainer = {"enable_checkpointing": True}
    fit(folder / "store", People.make(), Slow(), checkpoints, trainer=trainer, workers=1, parallel_units=2)
"""


class AtUnit(Callback):
    """Does something in the process that trains a unit, at its second batch."""

    def __init__(self, unit: str, store: Path) -> None:
        self.unit = unit
        self.store = store

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        s3t = next(c for c in trainer.callbacks if isinstance(c, S3T))  # type: ignore[attr-defined]
        if str(s3t.current_unit) == self.unit and trainer.global_step == 1:
            self.act()

    def act(self) -> None:
        raise NotImplementedError


class Die(AtUnit):
    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class KillServer(AtUnit):
    def act(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # ended meanwhile, since no process is left to hear of it


class KillWaiting(AtUnit):
    """Kills the process that waits for the next unit, beside this one."""

    def act(self) -> None:
        deadline = time.monotonic() + 30
        while not (waiting := self.forked() - {os.getpid()}):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)

    def forked(self) -> set[int]:
        """Those that the same process has forked; what it has started otherwise has another command line."""
        children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return {pid for pid, command in commands.items() if command == commands[os.getpid()]}


class Ask(AtUnit):
    """Asks once that a subject be forgotten."""

    def act(self) -> None:
        with Store.open(self.store) as store:
            if store.request_number == 0:
                store.forget([person_at(slice_=0)])


class Broken(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 1:
            raise ZeroDivisionError("a loss of nothing")
        return super().training_step(batch, batch_idx)


def person_at(slice_: int) -> str:
    partition = Partition(2, 2)
    places = {owner: partition.place(owner) for owner in People.make().owners}
    return next(owner for owner, place in places.items() if (place.shard, place.slice) == (0, slice_))


def assert_nothing_is_left(store: Path, checkpoints: Path) -> None:
    """No attempt, and no checkpoint that no unit has."""
    connection = sqlite3.connect(store / "ledger.db")
    assert connection.execute("SELECT count(*) FROM attempts").fetchone() == (0,)
    connection.close()
    with Store.open(store) as opened:
        kept = {Path(file["path"]) for record in opened.provenance() for file in record["files"]}
    assert set(checkpoints.rglob("*.ckpt")) == kept


def assert_the_next_fit_goes_on(store: Path, workers: int = 0) -> None:
    before = tensors_of(store)
    fit(store, People.make(), workers=workers)
    after = tensors_of(store)
    assert_bitwise_equal(before, {unit: after[unit] for unit in before})
    fit(store.parent / "whole", People.make(), workers=workers)
    assert_bitwise_equal(after, tensors_of(store.parent / "whole"))


def test_a_process_that_dies_ends_the_fit_which_names_the_unit_and_what_to_do(tmp_path: Path) -> None:
    store = tmp_path / "store"
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1)
    with pytest.raises(
        WorkerError, match=r"unit 1/0-1 was trained, its process died \(killed by signal 9, SIGKILL\).*parallel_units"
    ):
        fit(
            store,
            People.make(),
            checkpoints,
            Die("1/0-1", store),
            trainer={"enable_checkpointing": True},
            parallel_units=2,
        )
    assert_nothing_is_left(store, tmp_path / "checkpoints")
    assert tensors_of(store)
    assert_the_next_fit_goes_on(store)


def test_the_death_of_the_process_that_units_are_forked_from_ends_the_fit(tmp_path: Path) -> None:
    store, checkpoints = tmp_path / "store", ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1)
    with pytest.raises(WorkerError, match="fork server has ended"):
        fit(store, People.make(), checkpoints, KillServer("1/0", store), trainer={"enable_checkpointing": True})
    assert_nothing_is_left(store, tmp_path / "checkpoints")
    assert_the_next_fit_goes_on(store)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("isolation", ["forkserver", "fork"])
def test_the_death_of_a_process_that_waits_for_a_unit_does_no_harm(tmp_path: Path, isolation: str) -> None:
    fit(tmp_path / "cut", People.make(), KillWaiting("0/0", tmp_path / "cut"), epochs=1, isolation=isolation)
    fit(tmp_path / "whole", People.make(), epochs=1, isolation=isolation)
    assert_bitwise_equal(tensors_of(tmp_path / "cut"), tensors_of(tmp_path / "whole"))


def test_an_error_comes_back_as_it_was_raised_and_names_the_unit(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a loss of nothing") as raised:
        fit(tmp_path / "store", People.make(), module=Broken(), parallel_units=99)
    assert isinstance(raised.value.__cause__, WorkerError)
    assert "While unit " in str(raised.value.__cause__)
    assert "in training_step" in str(raised.value.__cause__)
    assert_nothing_is_left(tmp_path / "store", tmp_path)


def test_a_request_from_another_process_leads_to_what_scratch_gives(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), Ask("0/0", store), parallel_units=3)
    fit(tmp_path / "scratch", People.make().without(person_at(slice_=0)))
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first fit without the person of the request."""
    folder = tmp_path_factory.mktemp("scratch")
    fit(folder / "store", People.make().without(person_at(slice_=0)), workers=1)
    return folder / "store"


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("unit", [False, True], ids=["-", "unit"])
@pytest.mark.parametrize("server", [False, True], ids=["-", "server"])
@pytest.mark.parametrize("script", ["", "SIGINT", "SIGTERM", "SIGKILL"])
def test_whatever_is_killed_nothing_revoked_comes_back_and_nothing_is_left(
    tmp_path: Path, scratch: Path, script: str, server: bool, unit: bool
) -> None:
    """A request comes in while two units are trained, and then what is named here is killed at once."""
    file, store, output = tmp_path / "script.py", tmp_path / "store", tmp_path / "output"
    file.write_text(SCRIPT)
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(file), str(tmp_path)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        )
        try:
            wait_for(lambda: len(list((store / "snapshots").glob("*.safetensors"))) >= 3, process)
            with Store.open(store) as opened:
                opened.forget([person_at(slice_=0)])
            doomed = [(name, signal.SIGKILL) for name, kill in (("server", server), ("pid", unit)) if kill]
            targets = [(newest(tmp_path, name), how) for name, how in doomed]
            for pid, how in [*targets, *([(process.pid, signal.Signals[script])] if script else [])]:
                with contextlib.suppress(ProcessLookupError):  # the request has ended it meanwhile
                    os.kill(pid, how)
            process.wait(120)
        finally:
            process.kill()
    groups = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(groups) >= 2
    wait_for(lambda: not any(map(is_alive, groups)), None, seconds=5)
    if script == "SIGINT":
        assert "s3t-worker" not in output.read_text()
    with Store.open(store) as opened:  # clears away what a killed fit has left
        assert opened.request_number == 1
    assert_nothing_is_left(store, tmp_path / "checkpoints")
    before = tensors_of(store)
    fit(store, People.make(), workers=1)
    after = tensors_of(store)
    assert_bitwise_equal(before, {unit: after[unit] for unit in before})
    assert_bitwise_equal(after, tensors_of(scratch))


def newest(folder: Path, name: str) -> int:
    """The process that has noted itself last under a name."""
    found = max(folder.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime_ns)
    return int(found.name.removeprefix(f"{name}-"))


def wait_for(condition: Any, process: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the fit ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(group: int) -> bool:
    """Whether any process of a group lives: one that trains units, and its data loaders."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = [Path(f"/proc/{name}/stat") for name in os.listdir("/proc") if name.isdigit()]
    for state in states:
        try:
            fields = state.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
