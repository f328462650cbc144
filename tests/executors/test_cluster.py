"""Units on a cluster, without one: which machines are alike, what an actor does, what is refused."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_s3t import S3T
from lightning_s3t.engine.preflight import check_trainer_for_cluster
from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.executors.cluster import slot as slots
from lightning_s3t.executors.cluster.fingerprint import differences, fingerprint, fingerprint_apart
from lightning_s3t.executors.cluster.slot import Close, Command, Differs, End, Nearby, Ready, Say, Setup, Slot, Start
from lightning_s3t.executors.processes.messages import Failed, Noted
from lightning_s3t.executors.processes.package import Package
from lightning_s3t.executors.processes.packing import pack
from lightning_s3t.executors.processes.process_settings import ProcessSettings
from lightning_s3t.executors.processes.server import Ended
from lightning_s3t.executors.processes.unit_process import Script
from lightning_s3t.executors.progress import UnitProgress
from lightning_s3t.plan import UnitId
from tests.executors.test_unit_processes import Training, begin, die
from tests.people import ARGUMENTS, People, fit


@pytest.fixture
def package() -> Iterator[Package]:
    with closing(pack((None, Training(), ProcessSettings.capture()), {})) as found:
        yield found


@pytest.fixture
def setup(package: Package, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Setup]:
    """What a script on this machine sends."""
    monkeypatch.setattr(slots, "fingerprint_apart", fingerprint)  # the same, without a process that imports torch
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):  # an actor changes its environment; restore it
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def make(**changes: Any) -> Setup:
        values: dict[str, Any] = {
            "package": [],
            "header": package.header,
            "on_device": package.on_device,
            "expected": fingerprint("cpu"),
            "device": "cpu",
            "variables": slots.variables_of_bits(os.environ),
            "folder": None,
            "path": list(sys.path),
            "arguments": ["fit.py"],
            "aliased": False,
        }
        return Setup(**{**values, **changes})

    return make


@pytest.fixture
def slot(setup: Callable[..., Setup], package: Package) -> Iterator[Slot]:
    found = Slot()
    assert isinstance(found.begin(setup(), Nearby.of(package)), Ready)
    yield found
    found.command(Close())
    assert listen(found, 1)[-1] == (0, Ended(0, 0))


def listen(slot: Slot, count: int) -> list[tuple[int, bytes | Ended]]:
    """The next messages; at least so many."""
    heard: list[tuple[int, bytes | Ended]] = []
    while len(heard) < count:
        heard += slot.messages()
    return heard


def give(slot: Slot, *commands: Command) -> None:
    for command in commands:
        slot.command(command)


def start(number: int, function: Callable[..., Any], *arguments: Any, another: bool = False) -> Start:
    return Start(number, pickle.dumps(begin(function, *arguments)), another)


@pytest.mark.nightly  # a process that imports torch
def test_a_machine_is_like_itself() -> None:
    assert differences(fingerprint("cpu"), fingerprint_apart("cpu")) == []


def test_what_differs_is_named() -> None:
    here = fingerprint("cpu")
    there = {**here, "CPU capability of torch": "AVX2"}
    there.pop("peft")
    found = differences(here, there)
    assert len(found) == 2
    assert found[0].startswith("peft is missing instead of ")
    assert found[1].startswith("CPU capability of torch is 'AVX2' instead of ")


def test_only_variables_that_bits_depend_on_go_along() -> None:
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "LIGHTNING_S3T_KEY": "secret", "TORCH_HOME": "/models"}
    assert slots.variables_of_bits(environment) == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_an_actor_gets_the_scripts_variables_and_loses_its_own(setup: Callable[..., Setup], package: Package) -> None:
    expected = {**fingerprint("cpu"), "torch": "0.1"}
    os.environ["OMP_NUM_THREADS"] = "7"  # as Ray sets it
    Slot().begin(setup(expected=expected, variables={"MKL_CBWR": "AVX2"}), None)
    assert os.environ["MKL_CBWR"] == "AVX2"
    assert "OMP_NUM_THREADS" not in os.environ
    assert sys.argv == ["fit.py"]
    del os.environ["MKL_CBWR"]


def test_an_actor_on_another_kind_of_machine_says_how_it_differs(setup: Callable[..., Setup], package: Package) -> None:
    expected = {**fingerprint("cpu"), "torch": "0.1"}
    answer = Slot().begin(setup(expected=expected), Nearby.of(package))
    assert isinstance(answer, Differs)
    assert [how.partition(" is ")[0] for how in answer.how] == ["torch"]


def test_objects_that_cannot_be_loaded_are_an_answer(setup: Callable[..., Setup], package: Package) -> None:
    class Unprepared:
        def prepare(self) -> None:
            raise ImportError("no module named 'theirs'")

    with closing(pack((None, Unprepared(), ProcessSettings.capture()), {})) as other:
        answer = Slot().begin(setup(header=other.header), Nearby.of(other))
    assert isinstance(answer, Failed)
    assert "no module named 'theirs'" in answer.text


def test_the_memory_of_another_container_is_not_taken(setup: Callable[..., Setup], package: Package) -> None:
    here = Nearby.of(package)
    assert here.open(setup()) is not None
    assert Nearby(here.path, "pid:[1]").open(setup()) is None
    assert Nearby("/proc/1/fd/999", here.namespace).open(setup()) is None


def test_an_end_and_a_command_at_the_same_time_do_no_harm(slot: Slot) -> None:
    give(slot, start(1, die, 3), start(2, time.sleep, 600))
    slot.messages()
    time.sleep(0.5)  # the first has ended, which has not been read
    give(slot, End(2))
    assert sorted(listen(slot, 2)) == [(1, Ended(1, 3)), (2, Ended(2, 0))]


def test_every_process_is_fresh_and_its_end_is_told(slot: Slot) -> None:
    give(slot, start(1, die, 3, another=True), start(2, die, 4))
    assert sorted(listen(slot, 2)) == [(1, Ended(1, 3)), (2, Ended(2, 4))]


def test_a_process_that_is_ended_has_ended_when_it_is_told(slot: Slot) -> None:
    give(slot, start(1, time.sleep, 600))
    give(slot, End(1), Say(1, b""), End(1))  # commands for one that has gone do no harm
    assert listen(slot, 1) == [(1, Ended(1, 0))]


def test_the_last_message_of_a_process_comes_before_its_end(slot: Slot) -> None:
    give(slot, start(1, int, "x"))  # unpickling the job fails
    (number, message), end = listen(slot, 2)
    assert number == 1
    assert isinstance(message, bytes)
    assert isinstance(pickle.loads(message), Failed)
    assert end == (1, Ended(1, 0))


class Answered:
    """A unit's process that asks to write a file, and a script that answers."""

    def __init__(self, proof: str | None, scratch: Path | None) -> None:
        ours, theirs = Pipe()
        self.script = Script(theirs)
        self.script.scratch = scratch
        self.thread = threading.Thread(target=lambda: (ours.recv_bytes(), ours.send_bytes(pickle.dumps(Noted(proof)))))
        self.thread.start()


def test_a_file_is_written_where_the_script_can_erase_it(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    proof.touch()
    Answered(str(proof), tmp_path).script.note_file(tmp_path / "last.ckpt")
    assert not proof.exists()


def test_no_file_is_written_where_the_script_cannot_erase_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not see this folder"):
        Answered(str(tmp_path / "not-here"), tmp_path).script.note_file(tmp_path / "last.ckpt")


def test_no_file_is_written_if_its_temporary_file_would_stay(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    proof.touch()
    with pytest.raises(UnsupportedError, match="does not share the store's"):
        Answered(str(proof), tmp_path / "not-here").script.note_file(tmp_path / "last.ckpt")


@pytest.mark.parametrize("isolation", ["fork", "none"])
def test_units_of_the_scripts_process_cannot_be_elsewhere(tmp_path: Path, isolation: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"isolation='{isolation}'"):
        S3T(tmp_path / "store", **ARGUMENTS, isolation=isolation, executor="ray")


def test_an_executor_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="executor"):
        S3T(tmp_path / "store", **ARGUMENTS, executor="slurm")  # type: ignore[arg-type]


def test_ddp_on_a_cluster_is_refused() -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(UnsupportedError, match=r"each unit is trained on one device.*devices=1"):
        check_trainer_for_cluster(trainer)


def test_without_ray_the_fit_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r'pip install "lightning-s3t\[ray\]"'):
        fit(tmp_path / "store", People.make(), executor="ray")
    assert not (tmp_path / "store").exists()


def test_fast_dev_run_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    fit(tmp_path / "store", People.make(), executor="ray", trainer={"fast_dev_run": True})


def test_of_hundreds_of_units_the_display_names_the_first() -> None:
    units = [UnitId(shard, (0,)) for shard in range(256)]
    progress = UnitProgress(units, [1] * 256, slices=1, enabled=False)
    for unit in units:
        progress.start(unit)
    assert progress.describe_all() == "unit 1 of 256, 256 at once: 0/0, 1/0, 2/0, 3/0, 4/0, 5/0, 6/0, 7/0, ..."
