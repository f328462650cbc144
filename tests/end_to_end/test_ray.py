"""Units on a real Ray cluster: several raylets on this machine, of which some are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store import Store
from tests.end_to_end.test_requests_during_fit import Requests, forget_in, person_at
from tests.people import People, UnitLog, assert_bitwise_equal, fit, tensors_of

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(find_spec("ray") is None, reason='needs ray: pip install -e ".[ray]"'),
]

UNITS = 8


class Slow(UnitLog):
    """Notes each unit that begins, and takes its time."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and a machine with one core."""
    from ray.cluster_utils import Cluster

    # a machine that hangs counts as dead after some ten seconds
    health = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": health}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture(autouse=True)
def one_thread(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """One more machine with a core, for this test."""
    node = cluster.add_node(num_cpus=1)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine alone trains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = tmp_path_factory.mktemp("local") / "store"
    fit(store, People.make())
    torch.set_num_threads(threads)
    return store


def raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def when(condition: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    """Does something once a condition holds, while the test goes on."""

    def wait() -> None:
        while not condition():
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def assert_all_is_free(cluster: Any) -> None:
    """The cluster has as many free cores as it has cores: no actor is left."""
    import ray

    assert not ray.is_initialized()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
            assert time.monotonic() < deadline, f"{ray.available_resources()} of {ray.cluster_resources()}"
            time.sleep(0.2)
    finally:
        ray.shutdown()


def test_the_bits_are_those_of_one_machine_and_nothing_is_left(
    cluster: Any, second: Any, local: Path, tmp_path: Path
) -> None:
    store, log = tmp_path / "store", Slow(tmp_path / "log")
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    fit(store, People.make(), log, checkpoints, executor="ray", trainer={"enable_checkpointing": True})
    assert len(log.units) == UNITS
    assert_bitwise_equal(tensors_of(store), tensors_of(local))
    with Store.open(store) as opened:
        files = {Path(file["path"]) for record in opened.alive().values() for file in record.provenance["files"]}
    assert set((tmp_path / "checkpoints").rglob("*.ckpt")) == files
    assert not list(tmp_path.rglob(".s3t-*"))
    assert_all_is_free(cluster)
    fit(store, People.make(), log, checkpoints, executor="ray", trainer={"enable_checkpointing": True})
    assert len(log.units) == UNITS


def kill(node: Any, log: UnitLog) -> None:
    os.kill(raylet(node), signal.SIGKILL)


def freeze(node: Any, log: UnitLog) -> None:
    """Stops the machine's part of Ray, until its unit is trained elsewhere: then its own result comes, too late."""
    children = subprocess.run(["pgrep", "-P", str(raylet(node))], capture_output=True, text=True, check=True).stdout
    actors = [pid for pid in map(int, children.split()) if "Slot" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert actors
    for pid in (raylet(node), *actors):
        os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        for pid in (raylet(node), *actors):
            os.kill(pid, signal.SIGCONT)

    when(lambda: len(set(log.units)) < len(log.units), go_on)


@pytest.mark.parametrize("how", [kill, freeze])
def test_a_machine_that_dies_or_hangs_costs_its_unit_and_no_more(
    second: Any, tmp_path: Path, how: Callable[[Any, UnitLog], None]
) -> None:
    store, log = tmp_path / "store", Slow(tmp_path / "log")
    when(lambda: len(log.units) >= 3, lambda: how(second, log))
    with pytest.warns(UserWarning, match="The unit is trained again"):
        fit(store, People.make(), log, executor="ray", epochs=6)
    assert sorted(set(log.units)) == sorted(map(str, tensors_of(store)))
    assert len(log.units) == UNITS + 1  # one was begun twice, and is in the store once
    fit(tmp_path / "local", People.make(), epochs=6)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "local"))


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from pathlib import Path
import torch
from tests.end_to_end.test_ray import Slow
from tests.people import People, fit

torch.set_num_threads(1)
folder = Path(sys.argv[1])
fit(folder / "store", People.make(), Slow(folder / "log"), executor="ray")
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_script_that_dies_leaves_the_cluster_free_and_the_next_fit_goes_on(
    cluster: Any, local: Path, tmp_path: Path, how: signal.Signals
) -> None:
    store, log = tmp_path / "store", Slow(tmp_path / "log")
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while len(log.units) < 3:
            assert script.poll() is None, "the fit ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        script.send_signal(how)
        script.wait(60)
    finally:
        script.kill()
    assert_all_is_free(cluster)
    before = tensors_of(store)
    assert 2 <= len(before) < UNITS
    fit(store, People.make(), executor="ray")
    after = tensors_of(store)
    assert_bitwise_equal(before, {unit: after[unit] for unit in before})
    assert_bitwise_equal(after, tensors_of(local))


def test_a_machine_with_other_versions_gets_no_units(cluster: Any, local: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "safetensors-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 0.0.1\n")
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other.parent)})
    try:
        with pytest.warns(UserWarning, match=r"gets no units, because its safetensors is '0\.0\.1' instead of"):
            fit(tmp_path / "store", People.make(), executor="ray")
    finally:
        cluster.remove_node(node)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(local))


def test_a_cluster_without_a_suitable_machine_is_refused_before_anything_changes(tmp_path: Path) -> None:
    torch.set_num_threads(8)
    with pytest.raises(ConfigurationError, match="does not offer 8 CPUs"):
        fit(tmp_path / "store", People.make(), executor="ray")
    assert not (tmp_path / "store").exists()


def test_a_request_during_the_fit_ends_the_unit_that_it_reaches(tmp_path: Path) -> None:
    store, person = tmp_path / "store", person_at(slice_=0)

    def ask() -> None:
        forget_in(store, person)
        time.sleep(60)
        raise AssertionError("the unit was not ended")

    fit(store, People.make(), Requests(tmp_path / "steps", "0/0", ask, batch=2), epochs=3, executor="ray")
    fit(tmp_path / "scratch", People.make().without(person), epochs=3)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


class Failing(UnitLog):
    """Raises an error in one unit."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.units[-1] == "0/0-1":
            raise ZeroDivisionError("of the script's own")


def test_an_error_in_a_unit_is_raised_in_the_script(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="of the script's own"):
        fit(tmp_path / "store", People.make(), Failing(tmp_path / "log"), executor="ray")
    assert tensors_of(tmp_path / "store")
    assert_all_is_free(cluster)


def test_a_closed_form_head_is_the_same(tmp_path: Path) -> None:
    found = []
    for executor in ("local", "ray"):
        store = tmp_path / executor
        fit(store, People.make(), executor=executor, floor=True, shards=1, slices=1, budget=1)
        with Store.open(store) as opened:
            found.append(opened.heads()[PRETRAINED])
    assert found[0].rows == found[1].rows
