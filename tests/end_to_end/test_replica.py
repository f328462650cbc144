"""Replicas: none answers from what a request has revoked that has returned, and none without knowing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_s3t.cli import main
from lightning_s3t.errors import ConfigurationError, LedgerUnreachableError, NoSurvivorError, RevokedError
from lightning_s3t.serving import EnsemblePredictor, Replica
from lightning_s3t.store import Store
from tests.people import Classifier, People, fit
from tests.postgres_server import PostgresServer

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
PEOPLE = [f"user-{number}" for number in range(40)]


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


class Unreachable:
    """A ledger that a replica cannot reach."""

    def __getattr__(self, name: str) -> Any:
        raise LedgerUnreachableError("cut off")


@torch.no_grad()
def test_it_answers_as_the_predictor_does_and_what_is_forgotten_elsewhere_is_gone(store: Path) -> None:
    with Replica.from_store(store, Classifier()) as replica, Store.open(store) as elsewhere:
        with EnsemblePredictor.from_store(store, Classifier()) as served:
            before = served(X)
            assert torch.equal(replica(X), before)
            elsewhere.forget(["user-1"])
            assert torch.equal(replica(X), served(X))
        assert not torch.equal(replica(X), before)
        assert replica.request_number == 1


@torch.no_grad()
@pytest.mark.parametrize("max_staleness", [0, 0.4])
def test_an_answer_that_a_request_overtakes_is_computed_again(store: Path, max_staleness: float) -> None:
    """Whatever the module makes of several answers of its network: nothing of the first may be in it."""
    with Replica.from_store(store, Classifier(), max_staleness) as replica, Store.open(store) as elsewhere:
        first: list[Tensor] = []

        def compute(served: EnsemblePredictor) -> Tensor:
            first.append(served(X))
            if len(first) == 1:
                elsewhere.forget(["user-1"])
            return first[-1] + served(X)

        number, answer = replica.answer_as_of(compute)
        assert number == 1  # of the request that the second answer respects
        assert len(first) == 2
        assert torch.equal(answer, 2 * replica(X))
        assert not torch.equal(answer, first[0] + replica(X))


@torch.no_grad()
def test_forget_returns_when_the_replica_knows_of_it_and_not_when_its_time_is_over(store: Path) -> None:
    with Replica.from_store(store, Classifier(), 20.0) as replica, Store.open(store) as elsewhere:
        replica._lease.look()  # type: ignore[union-attr]
        before = replica(X)
        began = time.monotonic()
        elsewhere.forget(["user-1"])
        assert time.monotonic() - began < 15
        assert not torch.equal(replica(X), before)


def test_what_was_streamed_does_not_go_on_after_a_request(store: Path) -> None:
    with Replica.from_store(store, Classifier()) as replica, Store.open(store) as elsewhere:
        parts = replica.stream(lambda served: (number for number in range(3)))
        assert next(parts) == 0
        elsewhere.forget(["user-1"])
        with pytest.raises(RevokedError, match="Ask again"):
            next(parts)


@torch.no_grad()
def test_without_the_ledger_it_answers_to_the_end_of_its_time_and_then_refuses(store: Path) -> None:
    with Replica.from_store(store, Classifier(), 1.5) as replica:
        replica.check_ready()
        before = replica(X)
        lease = replica._lease
        assert lease is not None
        ledger, lease._ledger = lease._ledger, Unreachable()  # type: ignore[assignment]
        assert torch.equal(replica(X), before)
        assert replica.is_ready
        deadline = time.monotonic() + 10
        while replica.is_ready:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(LedgerUnreachableError, match=r"1\.5 seconds old"):
            replica(X)
        lease._ledger = ledger
        deadline = time.monotonic() + 40
        while not replica.is_ready:  # the next look that succeeds goes on
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert torch.equal(replica(X), before)


def test_every_way_to_forget_waits_and_for_a_crashed_replica_once(store: Path) -> None:
    with Store.open(store) as opened:
        opened.lease(0.5).look()  # as a replica that was killed leaves it
        began = time.monotonic()
        assert main(["forget", str(store), "user-1", "--request-id", "a"]) == 0
        assert time.monotonic() - began > 0.5
        began = time.monotonic()
        opened.forget(["user-2"])
        assert time.monotonic() - began < 0.5
        lease = opened.lease(30)
        lease.look()
        lease.close()
        began = time.monotonic()
        opened.forget(["user-3"])
        opened.forget(["user-1"], request_id="a")
        assert time.monotonic() - began < 10


def test_when_nothing_is_left_it_says_so(store: Path) -> None:
    with Replica.from_store(store, Classifier(), renew_every=None) as replica:
        replica.forget(PEOPLE)
        assert not replica.is_ready
        with pytest.raises(NoSurvivorError):
            replica(X)


@torch.no_grad()
def test_it_takes_up_what_is_trained(store: Path, trained: Path) -> None:
    with Replica.from_store(store, Classifier(), renew_every=0.05) as replica:
        before = replica(X)
        renewed = replica.served.refresh
        called: list[int] = []
        replica.served.refresh = lambda: (called.append(1), renewed())[1]  # type: ignore[method-assign]
        deadline = time.monotonic() + 10
        while len(called) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert torch.equal(replica(X), before)


def test_times_that_cannot_be_are_refused(store: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_staleness"):
        Replica.from_store(store, Classifier(), -1)
    with pytest.raises(ConfigurationError, match="renew_every"):
        Replica.from_store(store, Classifier(), renew_every=0)


def _serve(store: Path, seconds: float, log: Path, ready: Any) -> None:
    """Answer without end, and note when each answer was asked for, when it left, and what it was made of."""
    torch.set_num_threads(1)
    with torch.no_grad(), Replica.from_store(store, Classifier(), seconds) as replica, log.open("w") as file:
        ready.set()
        while True:
            began = time.monotonic()
            try:
                units = replica.answer(lambda served: (served(X), list(map(str, served.survivors.values())))[1])
            except (LedgerUnreachableError, NoSurvivorError) as error:
                units = [type(error).__name__]
                time.sleep(0.01)
            file.write(f"{began!r} {time.monotonic()!r} {','.join(units)}\n")
            file.flush()


@pytest.mark.nightly
@pytest.mark.parametrize("seconds", [0.0, 0.6])
def test_replicas_in_processes_of_their_own_while_they_and_the_server_go(tmp_path: Path, seconds: float) -> None:
    """No answer that was asked for after a request had returned comes from what it revoked."""
    server = PostgresServer()
    store = tmp_path / "store"
    fit(store, People.make(), ledger=server.new_address())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.end_to_end.test_replica"])
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    events = [context.Event() for _ in logs]
    processes = [
        context.Process(target=_serve, args=(store, seconds, log, event), daemon=True)
        for log, event in zip(logs, events, strict=True)
    ]
    for process, event in zip(processes, events, strict=True):
        process.start()
        assert event.wait(300)
    revoked: list[tuple[float, set[str]]] = []
    with Store.open(store) as opened:
        for number, person in enumerate(PEOPLE[:4]):
            time.sleep(0.3)
            if number == 1:
                os.kill(processes[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
            if number == 2:
                os.kill(processes[1].pid, signal.SIGSTOP)  # type: ignore[arg-type]
            if number == 3:
                server.stop()
                time.sleep(1.5)
                server.start()
            receipt = opened.forget([person])
            revoked.append((time.monotonic(), set(receipt.revoked)))  # type: ignore[union-attr]
    os.kill(processes[1].pid, signal.SIGCONT)  # type: ignore[arg-type]
    time.sleep(1.0)
    for process in processes:
        process.kill()
        process.join()
    server.remove()
    answers = [line.split(" ") for log in logs for line in log.read_text().splitlines() if line.count(" ") == 2]
    assert len(answers) > 20
    for began, _, units in answers:
        for returned, gone in revoked:
            assert float(began) < returned or not gone & set(units.split(",")), (began, returned, units)
