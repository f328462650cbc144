"""Servers as users start them: `s3t serve` in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

ASK = "ask-token-of-the-tests"


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; other tests may run at the same time."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """`s3t serve` in a process group of its own.

    Args:
        folder: For its settings and its log.
        store: The store.
        number: Of the server, for the names of its files.
        settings: Of the service; without a model, it serves the tests' classifier.
    """

    def __init__(self, folder: Path, store: Path, number: int, **settings: Any) -> None:
        self.port, self.control = _free_ports(2)
        config = folder / f"app-{number}.yaml"
        control = {"port": self.control, "requests_per_minute": 100_000}
        model = {"model": "tests.people:Classifier"}
        config.write_text(json.dumps({**model, "port": self.port, "control": control, **settings}))
        self.log = (folder / f"server-{number}.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightning_s3t", "serve", store, "--config", config],
            cwd=folder,
            env={**os.environ, "S3T_ASK_TOKEN": ASK, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
            stdout=self.log,
            stderr=self.log,
        )

    def wait_until_ready(self, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        for url in (f"http://127.0.0.1:{self.port}/health", f"http://127.0.0.1:{self.control}/readyz"):
            while True:
                assert self.process.poll() is None, Path(self.log.name).read_text()
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url).status_code == 200:
                        break
                assert time.monotonic() < deadline, Path(self.log.name).read_text()
                time.sleep(0.1)

    def worker(self) -> int:
        """A process that answers: of those that were spawned, the last; the control server is the first."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                is_own = entry.name.isdigit() and os.getpgid(int(entry.name)) == self.process.pid
                if is_own and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return max(found)

    def ask(self, person: str) -> Any:
        return httpx.post(
            f"http://127.0.0.1:{self.control}/forget",
            json={"request_id": f"forget-{person}", "subjects": [person]},
            headers={"Authorization": f"Bearer {ASK}"},
            timeout=120,
        )

    def metrics(self) -> dict[tuple[str, ...], float]:
        text = httpx.get(
            f"http://127.0.0.1:{self.control}/metrics", headers={"Authorization": f"Bearer {ASK}"}, timeout=60
        ).text
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def interrupt(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(120)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def servers(folder: Path, store: Path, count: int, **settings: Any) -> Iterator[list[Server]]:
    started = [Server(folder, store, number, **settings) for number in range(count)]
    try:
        for server in started:
            server.wait_until_ready()
        yield started
    finally:
        for server in started:
            server.kill()
