"""The example in configs/federated, on a real deployment of Flower: a SuperLink and SuperNodes, as processes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_s3t import EnsembleModule, Store
from lightning_s3t.federated import Contribution, FederatedHead
from tests import processes
from tests.docs.pages import DOCS, blocks_of, commands_of
from tests.federated.having_flower import needs_flower
from tests.federated.test_federated_head import tensors

EXAMPLE = Path(__file__).parents[2] / "configs" / "federated"
PAGE = DOCS / "federated.md"
PORT = "8000"  # of the SuperLink, on the page


def shown(beginning: str) -> list[str]:
    """The words of the first command line of the page that begins so."""
    return shlex.split(next(line for line in commands_of(PAGE) if line.startswith(beginning)))


def file_shown(name: str) -> str:
    return next(block.text for block in blocks_of(PAGE) if block.title == name)


@pytest.mark.parametrize("name", ["app/pyproject.toml", "app/client_app.py", "app/server_app.py"])
def test_the_page_shows_the_files_of_the_app(name: str) -> None:
    assert file_shown(name) == re.sub('^""".*"""\\n\\n', "", (EXAMPLE / name).read_text())


class Deployment:
    """A SuperLink and SuperNodes, started by the commands of the page, on free ports.

    Args:
        folder: Where all of them are started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = dict[str, subprocess.Popen[bytes]]()
        self.commands = list[subprocess.Popen[str]]()
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.port = str(free_port())
        (folder / "flower").mkdir()
        (folder / "flower" / "config.toml").write_text(file_shown("~/.flwr/config.toml").replace(PORT, self.port))

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.running)):  # nodes first: they sign off
            self.stop(name, signal.SIGTERM)
        for command in self.commands:
            command.kill()
            command.wait()

    def start_link(self) -> None:
        self.start("link", [*shown("flower-superlink"), "--port", self.port], ready="Uvicorn running")

    def start_node(self, client: str) -> None:
        command = [word.replace(PORT, self.port).replace("hospital-7", client) for word in shown("flower-supernode")]
        self.start(client, [*command, "--port", str(free_port())], ready="SuperNode ID")

    def start(self, name: str, command: list[str], ready: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_for(name, ready)

    def wait_for(self, name: str, text: str, times: int = 1) -> None:
        """Wait until a process has printed a text so many times."""
        deadline = time.monotonic() + 300
        while (log := (self.folder / f"{name}.log").read_text()).count(text) < times:
            assert self.running[name].poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.5)

    def stop(self, name: str, number: signal.Signals) -> None:
        process = self.running.pop(name)
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        # what it has started; only the helper of a SuperLink has a session of its own, and ends when this has been reaped
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def run(self, killed: str = "") -> dict[str, Any]:
        """Start a run, wait for its end, and return what Flower says of it.

        Args:
            killed: The client whose node is killed when it has got the message of its second run.
        """
        done = self.command(shown("flwr run"))
        if killed:
            self.wait_for(killed, "Receiving: query.contribution", times=2)
            self.stop(killed, signal.SIGKILL)
        self.output(done)
        newest, *_ = json.loads(self.output(self.command(shown("flwr list"))))["runs"]
        return dict(newest)

    def command(self, words: list[str]) -> subprocess.Popen[str]:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.commands.append(subprocess.Popen(words, cwd=self.folder, env=self.environment, **streams))
        return self.commands[-1]

    def output(self, command: subprocess.Popen[str]) -> str:
        out, error = command.communicate(timeout=600)
        logs = "".join(path.read_text() for path in self.folder.glob("*.log"))
        assert command.returncode == 0, f"{command.args}: {out}{error}{logs}"
        return out


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def load_example(folder: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("federated_example", folder / "fit.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def assert_equal(head: FederatedHead, everything: Path, example: ModuleType) -> None:
    """The server's head is bitwise that of one store: its sums, and its answers."""
    with Store.open(everything) as store:
        assert tensors(head.sums()) == tensors(Contribution.of(store).sums)
    images = torch.stack([image for image, _ in example.Patients(*example.HOSPITALS).rows("test")])
    served = head.module(example.make_model())
    with EnsembleModule.from_store(everything, example.make_model()) as alone:
        assert torch.equal(served(images), alone(images))


def forget(store: Path, patient: str) -> None:
    with Store.open(store) as opened:
        assert opened.forget([patient]).subtracted_rows


@pytest.mark.nightly
@needs_flower
@pytest.mark.timeout(1800)  # a dozen processes that each import torch, and a minute until a killed node is missed
def test_the_example_forgets_on_a_superlink_and_two_supernodes(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the example's network is timm's")
    pytest.importorskip("sklearn", reason="the example's rows are scikit-learn's")
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    example, runs = load_example(tmp_path), tmp_path / "runs"
    for hospital in example.HOSPITALS:
        _, *words = shown("python fit.py")
        processes.run(tmp_path, *[word.replace("hospital-7", hospital) for word in words])
    example.fit(str(runs / "all"), *example.HOSPITALS)
    head = FederatedHead(runs / "federated")
    with Deployment(tmp_path) as deployment:
        deployment.start_link()
        for hospital in example.HOSPITALS:
            deployment.start_node(hospital)
        assert deployment.run()["status"] == "finished:completed"
        assert list(head.clients()) == example.HOSPITALS
        assert_equal(head, runs / "all", example)

        # requests at both, of whom one dies before it has sent: its last contribution still counts
        forget(runs / "hospital-7", "person-5")
        forget(runs / "hospital-3", "person-4")
        failed = deployment.run(killed="hospital-3")
        assert failed["status"] == "finished:failed"
        reason = r"node \d+: failed \(.*Node Unavailable.*\); client 'hospital-3': sent nothing. Updated: hospital-7\."
        assert re.search(reason, failed["status-details"]), failed
        assert [(change.client, change.requests) for change in head.history()[2:]] == [("hospital-7", 1)]
        forget(runs / "all", "person-5")
        assert_equal(head, runs / "all", example)

        deployment.start_node("hospital-3")
        assert deployment.run()["status"] == "finished:completed"
        assert [(change.client, change.requests) for change in head.history()[3:]] == [
            ("hospital-3", 1),
            ("hospital-7", 1),
        ]
        forget(runs / "all", "person-4")
        assert_equal(head, runs / "all", example)
