"""Processes at one store at once: one serves, one trains, others forget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import Partition, Place, UnitId, units_of
from lightning_s3t.store import Store
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 2, "slices": 2, "seed": 0}}
PARTITION = Partition(2, 2, 0)
PEOPLE = [f"user-{number}" for number in range(60)]
UNITS = units_of(2, [(0, 1), (1, 0)])
ROOT = Path(__file__).parents[2]

SERVER = """
import sys
sys.path.insert(0, {root!r})
from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store

with Store.open({path!r}) as store:
    for line in sys.stdin:
        try:
            answer = store.load(UnitId.parse(line.strip()))["w"].tolist()
        except RevokedError:
            answer = "revoked"
        print(store.request_number, answer, flush=True)
"""


def person_in(shard: int, slice_: int) -> str:
    return next(person for person in PEOPLE if PARTITION.place(person) == Place(shard, slice_))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        session(store).register(PEOPLE)
        for number, unit in enumerate(UNITS):
            session(store).start_unit(unit, "key").commit({"w": torch.tensor([number])}, {"as_of": 0})
    return tmp_path / "store"


@contextmanager
def child(work: Callable[[IO[str]], None]) -> Iterator[IO[str]]:
    """Run a function in a forked child that writes to what the block reads."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w", buffering=1) as output:
                work(output)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as lines:
        yield lines
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_that_serves_sees_a_request_of_another_at_once(path: Path) -> None:
    code = SERVER.format(root=str(ROOT), path=str(path))
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def answer(unit: str) -> str:
            print(unit, file=server.stdin, flush=True)
            return server.stdout.readline().strip()  # type: ignore[union-attr]

        with Store.open(path) as store:
            assert answer("0/0-1") == f"0 [{UNITS.index(UnitId(0, (0, 1)))}]"
            store.forget([person_in(0, 1)])
            assert answer("0/0-1") == "1 revoked"
            assert answer("0/0") == f"1 [{UNITS.index(UnitId(0, (0,)))}]"
        server.stdin.close()
        assert server.wait() == 0


def test_a_request_of_another_process_keeps_a_running_attempt_out_and_erases_its_files(
    path: Path, tmp_path: Path
) -> None:
    def forget(output: IO[str]) -> None:
        with Store.open(path) as store:
            print(store.forget([person_in(0, 0)]).request, file=output)

    unit = UnitId(0, (0,))
    with Store.open(path) as store, store.building():
        attempt = session(store).start_unit(unit, "new")
        attempt.register_file(tmp_path / "a.ckpt")
        (tmp_path / "a.ckpt").touch()
        with child(forget) as lines:
            assert lines.read() == "1\n"
        assert (tmp_path / "a.ckpt").exists()  # it is the attempt's own to erase
        with pytest.raises(RevokedError):
            attempt.commit({"w": torch.ones(9)}, {})
        assert not (tmp_path / "a.ckpt").exists()
        digests = {record.snapshot for record in store.alive().values()}
        assert {entry.stem for entry in (path / "snapshots").iterdir()} == digests


def test_a_process_that_forgets_does_not_wait_for_a_fit(path: Path) -> None:
    def fit(output: IO[str]) -> None:
        with Store.open(path) as store, store.building():
            session(store).start_unit(UNITS[0], "new")
            print("training", file=output, flush=True)
            time.sleep(3)

    with child(fit) as lines:
        assert lines.readline() == "training\n"
        with Store.open(path) as store:
            begun = time.monotonic()
            store.forget([person_in(0, 0)])
            assert time.monotonic() - begun < 2.5


def test_no_unit_survives_a_request_that_came_after_its_data_was_chosen(path: Path) -> None:
    def forget(number: int) -> Callable[[IO[str]], None]:
        def work(output: IO[str]) -> None:
            with Store.open(path) as store:
                for person in PEOPLE[number::3]:
                    receipt = store.forget([person])
                    print(json.dumps([person, receipt.request]), file=output)
                    time.sleep(0.01)

        return work

    def fit(store: Store) -> None:
        with store.building():
            for unit in UNITS:
                as_of = store.request_number
                if unit in store.alive() or (unit.parent and unit.parent not in store.alive()):
                    continue
                try:
                    attempt = session(store).start_unit(unit, "key", as_of)
                    attempt.register_file(path.parent / f"{unit.shard}-{unit.prefix}.ckpt")
                    (path.parent / f"{unit.shard}-{unit.prefix}.ckpt").touch()
                    attempt.commit({"w": torch.tensor([as_of])}, {"as_of": as_of})
                except RevokedError:
                    continue

    with child(forget(0)) as first, child(forget(1)) as second, child(forget(2)) as third:
        with Store.open(path) as store:
            while store.request_number < len(PEOPLE):
                fit(store)
        requests = [json.loads(line) for lines in (first, second, third) for line in lines]
    with Store.open(path) as store:
        assert {person for person, _ in requests} == store.forgotten(PEOPLE) == set(PEOPLE)
        assert sorted(number for _, number in requests) == list(range(1, len(PEOPLE) + 1))
        alive = store.alive()
        for person, number in requests:
            for unit, record in alive.items():
                assert record.provenance["as_of"] >= number or not unit.reached_by(PARTITION.place(person))
        files = {Path(file["path"]) for record in alive.values() for file in record.provenance.get("files", [])}
        assert set(path.parent.glob("*.ckpt")) == files
        for unit in alive:
            store.load(unit)
