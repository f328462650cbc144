"""Several processes at one store: locks, forks, and requests that come at a bad moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import RevokedError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.snapshots.snapshots import SnapshotFolder
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 1, "slices": 1, "seed": 0}}
UNIT = UnitId(0, (0,))
PREFACE = (
    f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom lightning_s3t.store import Store\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        session(store).register(["ann", "bob"])
        session(store).start_unit(UNIT, "key").commit({"w": torch.ones(2)}, {})
    return tmp_path / "store"


def start(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PREFACE + code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_fit_is_not_refused_because_others_open_the_store(path: Path) -> None:
    process = start(
        f"Store.open({str(path)!r}); print('ready', flush=True)\nwhile True: Store.open({str(path)!r}).close()"
    )
    try:
        with Store.open(path) as store:
            for _ in range(100):
                time.sleep(0.003)  # so that the other has its chance to come in between
                with store.building():
                    pass
    finally:
        process.kill()
        process.wait()


def test_a_killed_fit_holds_no_lock(path: Path) -> None:
    process = start(f"with Store.open({str(path)!r}).building(): print('ready', flush=True); time.sleep(60)")
    with Store.open(path) as store:
        begun = time.monotonic()
        with pytest.raises(StoreError, match="Another fit is running on the store"), store.building():
            pass
        assert time.monotonic() - begun < 10  # refused at once, not waited for
        process.send_signal(signal.SIGKILL)
        process.wait()
        with store.building():
            pass


def test_a_worker_that_outlives_the_fit_holds_no_lock(path: Path) -> None:
    with Store.open(path) as store:
        with store.building():
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
        try:
            with store.building():
                pass
        finally:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


def test_a_forked_worker_that_leaves_the_block_does_not_release_the_lock(path: Path) -> None:
    with Store.open(path) as store:
        block = store.building()
        block.__enter__()
        worker = os.fork()
        if worker == 0:
            block.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(worker, 0)
        with Store.open(path) as other, pytest.raises(StoreError, match="Another fit"), other.building():
            pass
        block.__exit__(None, None, None)


def test_a_forked_process_has_a_connection_of_its_own(path: Path) -> None:
    with Store.open(path) as store:
        assert store.request_number == 0
        worker = os.fork()
        if worker == 0:
            try:
                store.forget(["ann"])
            finally:
                os._exit(int(store.request_number != 1))
        assert os.waitpid(worker, 0)[1] == 0
        assert store.request_number == 1
        assert store.alive() == {}


@pytest.mark.parametrize("moment", ["before the file is read", "after the file is read"])
def test_a_unit_that_is_revoked_while_it_is_read_is_not_given_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    read = SnapshotFolder.get

    def interrupted(*arguments: object) -> object:
        tensors = read(*arguments) if moment.startswith("after") else None  # type: ignore[arg-type]
        with Store.open(path) as elsewhere:
            elsewhere.forget(["ann"])
        return tensors if tensors is not None else read(*arguments)  # type: ignore[arg-type]

    with Store.open(path) as store:
        monkeypatch.setattr(SnapshotFolder, "get", interrupted)
        with pytest.raises(RevokedError, match="has no unit 0/0: it was revoked"):
            store.load(UNIT)


@pytest.mark.nightly
def test_two_processes_that_make_a_store_at_once_agree_on_its_key(tmp_path: Path) -> None:
    code = (
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"store = Store.create({str(tmp_path / 'store')!r}, {SETTINGS!r}); print(store.subject_hashes(['ann'])['ann'])"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    made = [subprocess.Popen([sys.executable, "-c", PREFACE + code], **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in made:
        assert process.stdout.readline() == "ready\n"
    for process in made:
        process.stdin.write("\n")
        process.stdin.flush()
    hashes = {process.communicate()[0].strip() for process in made}
    with Store.open(tmp_path / "store") as store:
        assert hashes == {store.subject_hashes(["ann"])["ann"]}
