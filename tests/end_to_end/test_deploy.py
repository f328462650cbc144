"""The files in configs/deploy: their command lines, run as processes of this machine, without containers."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lightning_s3t.service.settings import read_settings
from lightning_s3t.store import Store
from tests.object_storage import shared_storage
from tests.postgres_server import shared_server

DEPLOY = Path(__file__).parents[2] / "configs" / "deploy"
COMPOSE = ["one-machine.yaml", "few-machines.yaml"]
PREDICT, CONTROL = 18680, 18681


def services(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())["services"]
    return found


def containers() -> dict[str, Any]:
    """By name, the containers of the manifests for Kubernetes."""
    found = {}
    for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        spec = one.get("spec", {})
        template = spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template") or {}
        for container in template.get("spec", {}).get("containers", []):
            found[container["name"]] = {**container, "spec": template["spec"]}
    return found


def plain(command: list[str]) -> list[str]:
    """A command without what Compose and Kubernetes each write around the names of variables."""
    return [re.sub(r"\$[({](\w+)(?::\?)?[)}]", r"$\1", word) for word in command]


def test_a_cluster_runs_the_commands_of_a_few_machines() -> None:
    theirs = services("few-machines.yaml")
    assert {name: plain(one["command"]) for name, one in containers().items()} == {
        name: plain(theirs[name]["command"]) for name in ("serve", "fit", "verify", "backup")
    }


def test_every_volume_that_a_container_mounts_is_there() -> None:
    for name in COMPOSE:
        declared = yaml.safe_load((DEPLOY / name).read_text())["volumes"]
        for service in services(name).values():
            assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(declared)
    for container in containers().values():
        mounted = {volume["name"] for volume in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in container["spec"]["volumes"]}


def test_ports_and_probes_are_those_of_the_settings() -> None:
    settings = read_settings(DEPLOY / "app" / "serve.yaml")
    ports = {settings.port, settings.control.port}
    serve = containers()["serve"]
    assert {port["containerPort"] for port in serve["ports"]} == ports
    assert serve["livenessProbe"]["httpGet"]["path"] == "/healthz"  # not /readyz: all would restart at once
    for name in COMPOSE:
        service = services(name)["serve"]
        assert {int(port.rpartition(":")[2]) for port in service["ports"]} == ports
        assert f":{settings.port}/healthz" in service["healthcheck"]["test"][-1]
        assert f"127.0.0.1:{settings.control.port}:{settings.control.port}" in service["ports"]


def test_keys_are_in_a_volume_of_their_own_that_no_backup_mounts() -> None:
    for name in COMPOSE:
        found = services(name)
        assert "keys:/keys" in found["serve"]["volumes"]
        assert any(word.startswith("/keys/") for word in found["fit"]["command"])
    assert services("few-machines.yaml")["backup"]["volumes"] == ["backup:/backup"]


class Machine:
    """What containers would be: folders for the volumes, the environment, and a name for each command."""

    def __init__(self, name: str, folder: Path, variables: dict[str, str]) -> None:
        self.services, self.folder, self.variables = services(name), folder, variables
        for volume in ("store", "keys", "backup"):
            (folder / volume).mkdir()
        shutil.copytree(DEPLOY / "app", folder / "app")
        settings = (folder / "app" / "serve.yaml").read_text()
        settings = settings.replace("port: 8000", f"port: {PREDICT}").replace("port: 8001", f"port: {CONTROL}")
        (folder / "app" / "serve.yaml").write_text(settings)

    def command(self, service: str) -> list[str]:
        found = [self.filled_in(word) for word in self.services[service]["command"]]
        if found[0] == "s3t":
            return [sys.executable, "-m", "lightning_s3t", *found[1:]]
        return [str(shared_server().program(found[0])) if found[0] == "pg_dump" else found[0], *found[1:]]

    def filled_in(self, word: str) -> str:
        word = re.sub(r"\$\{(\w+)(?::[?-])?\}", lambda found: self.variables[found[1]], word)
        return re.sub(r"(?<![\w.:/])/(store|app|keys|backup)/", rf"{self.folder}/\1/", word)

    def start(self, service: str, *more: str, **options: Any) -> subprocess.Popen[bytes]:
        given = self.services[service].get("environment", {})
        environment = {name: self.filled_in(value) for name, value in given.items()}
        kept = {
            name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "AWS_DEFAULT_REGION") if name in os.environ
        }
        return subprocess.Popen(
            [*self.command(service), *more],
            cwd=self.folder / "app",
            env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            **options,
        )

    def run(self, service: str, *more: str) -> str:
        with (self.folder / f"{service}.log").open("w+") as log:
            process = self.start(service, *more, stdout=log, stderr=log)
            assert process.wait(600) == 0, Path(log.name).read_text()
            return Path(log.name).read_text()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        with (self.folder / "serve.log").open("w") as log:
            process = self.start("serve", stdout=log, stderr=log, start_new_session=True)
            try:
                deadline = time.monotonic() + 300
                for port in (PREDICT, CONTROL):
                    while not is_ready(port):
                        assert process.poll() is None, Path(log.name).read_text()
                        assert time.monotonic() < deadline, Path(log.name).read_text()
                        time.sleep(0.2)
                yield
                process.send_signal(signal.SIGTERM)  # as Docker and Kubernetes do
                assert process.wait(60) == 0, Path(log.name).read_text()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    return False


def rehearse(store: Path, database: str, dump: Path) -> None:
    """What docs/machines.md says: the dump is restored into another database, and opened beside the store."""
    server = shared_server()
    address = server.address("digits", "drill")
    subprocess.run([server.program("createdb"), f"--maintenance-db={database}", "drill"], check=True)
    subprocess.run([server.program("pg_restore"), "-d", re.sub("&?schema=digits", "", address), dump], check=True)
    with Store.open(store) as opened:
        found = opened.drill(address)
    assert found.passed, found.problems


@pytest.mark.nightly
@pytest.mark.timeout(1800)  # two fits, a server and half a dozen commands that each import torch
@pytest.mark.parametrize("name", COMPOSE)
def test_the_commands_fit_serve_forget_verify_back_up_and_drill(name: str, tmp_path: Path) -> None:
    is_one = name == "one-machine.yaml"
    variables = {"LIGHTNING_S3T_KEY": secrets.token_hex(32), "S3T_ASK_TOKEN": secrets.token_hex(32)}
    if not is_one:
        bucket, address = shared_storage().new_bucket(), shared_server().address("digits")
        variables |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        variables |= {"S3T_LEDGER": address, "S3T_SNAPSHOTS": f"s3://{bucket}/digits", "PGPASSWORD": "unused"}
        variables["S3T_DATABASE"] = re.sub("&?schema=digits", "", address)
    machine = Machine(name, tmp_path, variables)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LIGHTNING_S3T_KEY", variables["LIGHTNING_S3T_KEY"])
        machine.run("fit", "--trainer.max_epochs=1")
        store = tmp_path / "store" / "digits"
        with Store.open(store) as opened:
            assert opened.alive()
        with machine.serving():
            answer = httpx.post(f"http://127.0.0.1:{PREDICT}/predict", json={"inputs": [[[0.0] * 8] * 8]}, timeout=60)
            assert answer.status_code == 200, answer.text
            forgotten = httpx.post(
                f"http://127.0.0.1:{CONTROL}/forget",
                json={"request_id": "dsr-1", "subjects": ["person-17"]},
                headers={"Authorization": f"Bearer {variables['S3T_ASK_TOKEN']}"},
                timeout=60,
            )
            assert forgotten.status_code in (200, 201), forgotten.text
            again = httpx.post(f"http://127.0.0.1:{PREDICT}/predict", json={"inputs": [[[0.0] * 8] * 8]}, timeout=60)
            assert again.headers["x-s3t-request"] == "1"
        machine.run("verify")
        machine.run("backup")
        if is_one:
            assert "would be complete" in machine.run("drill")
        else:
            rehearse(store, variables["S3T_DATABASE"], tmp_path / "backup" / "digits.dump")
        with Store.open(store) as opened:
            digests = {record.snapshot for record in opened.alive().values()}
        assert digests <= {path.stem for path in (tmp_path / "keys" / "digits").iterdir()}
        machine.run("fit", "--trainer.max_epochs=1")  # again, after a request
        machine.run("verify")
    assert any((tmp_path / "backup").iterdir())
