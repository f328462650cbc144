"""The service: answers in batches, and both doors as processes under load while people are forgotten."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from lightning_s3t.errors import LedgerUnreachableError
from lightning_s3t.service.predict import Answering, Refused
from lightning_s3t.serving import EnsemblePredictor, Replica
from lightning_s3t.store import Store
from tests.end_to_end.servers import servers
from tests.people import Classifier, People, fit

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
PEOPLE = [f"user-{number}" for number in range(40)]


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def rows_of(answering: Answering, *bodies: Any) -> list[tuple[int, Any]]:
    answers = answering.answer([answering.decode(body) for body in bodies])
    return [(answer.status_code, json.loads(bytes(answer.body))) for answer in answers]


def test_requests_are_answered_in_one_batch_and_a_bad_one_takes_no_other_along(store: Path) -> None:
    with Replica.from_store(store, Classifier()) as replica:
        with torch.no_grad():
            expected = replica(X[:2])
        answering = Answering(replica)
        good = [{"inputs": row.tolist()} for row in X[:2]]
        found = rows_of(answering, good[0], {"nothing": 1}, good[1], None, {"inputs": [1.0, 2.0]}, {"inputs": "x"})
        assert [status for status, _ in found] == [200, 422, 200, 422, 422, 422]
        assert torch.allclose(torch.tensor([found[0][1], found[2][1]]), expected, atol=1e-5)
        assert {body["error"]["code"] for status, body in found if status == 422} == {"invalid"}
        answer = answering.answer([answering.decode(good[0])])[0]
        assert answer.headers["x-s3t-request"] == "0"
        replica.forget(["user-1"])
        answer = answering.answer([answering.decode(good[0])])[0]
        assert answer.headers["x-s3t-request"] == "1"


def test_a_row_whose_answer_is_not_a_number_takes_no_other_along(store: Path) -> None:
    with Replica.from_store(store, Classifier()) as replica:
        good = {"inputs": X[0].tolist()}
        endless = json.loads('{"inputs": [1e999, NaN, 0, 0, 0, 0, 0, 0]}')
        found = rows_of(Answering(replica), good, endless, good)
        assert [status for status, _ in found] == [200, 422, 200]
        assert found[1][1]["error"]["code"] == "invalid"


def test_what_cannot_be_answered_now_may_be_asked_again(store: Path) -> None:
    with Replica.from_store(store, Classifier(), renew_every=None) as replica:
        answering = Answering(replica, encode=lambda row: int(row.argmax()))
        body = {"inputs": X[0].tolist()}
        assert rows_of(answering, body)[0][0] == 200

        def cut_off() -> int:
            raise LedgerUnreachableError("postgresql://somewhere")

        look = replica.served._look
        replica.served.look_with(cut_off)
        answer = answering.answer([answering.decode(body)])[0]
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert b"somewhere" not in bytes(answer.body)
        replica.served.look_with(look)
        replica.forget(PEOPLE)
        assert rows_of(answering, body)[0] == (
            503,
            {"error": {"code": "no_survivor", "message": "No unit is left that may answer until the next fit."}},
        )


def test_nothing_of_a_row_that_was_revoked_while_it_was_encoded_leaves(store: Path) -> None:
    with Replica.from_store(store, Classifier()) as replica, Store.open(store) as elsewhere:
        encoded: list[Any] = []

        def encode(row: Any) -> Any:
            encoded.append(row.tolist())
            if len(encoded) == 1:
                elsewhere.forget(["user-1"])
            return row.tolist()

        answering = Answering(replica, encode=encode)
        ((status, body),) = rows_of(answering, {"inputs": X[0].tolist()})
        assert (status, body, len(encoded)) == (200, encoded[1], 2)
        assert encoded[0] != encoded[1]
        assert isinstance(answering.decode(None), Refused)


@pytest.mark.nightly
@pytest.mark.parametrize("max_staleness", [0.0, 0.5])
def test_two_servers_answer_while_people_are_forgotten_and_one_is_killed(
    store: Path, tmp_path: Path, max_staleness: float
) -> None:
    """No request fails after one retry with the other server, and nothing that was forgotten before it is answered."""
    seconds, clients = float(os.environ.get("S3T_LOAD_SECONDS", "10")), 64
    returned: list[tuple[float, int]] = [(0.0, 0)]
    failures: list[str] = []
    took: list[float] = []
    retried = 0
    end = threading.Event()
    with Store.open(store) as opened:  # of one slice, so that something is left that answers
        place = opened.partition.place(PEOPLE[0])
        people = [person for person in PEOPLE if opened.partition.place(person) == place]
    settings = {"workers": 2, "max_staleness": max_staleness, "timeout": 20.0}
    with servers(tmp_path, store, 2, **settings) as (first, second), Store.open(store) as opened:

        def client(seed: int) -> None:
            nonlocal retried
            choose = random.Random(seed)
            with httpx.Client(timeout=30) as http:
                while not end.is_set():
                    row, order = choose.randrange(5), [first, second]
                    choose.shuffle(order)
                    began, problem = time.monotonic(), ""
                    floor = max(number for at, number in list(returned) if at <= began)
                    for server in order:
                        try:
                            url = f"http://127.0.0.1:{server.port}/predict"
                            answer = http.post(url, json={"inputs": X[row].tolist()})
                        except httpx.HTTPError as error:
                            problem = type(error).__name__
                            retried += 1
                            continue
                        if answer.status_code == 200:
                            problem = ""
                            took.append(time.monotonic() - began)
                            if int(answer.headers["x-s3t-request"]) < floor:
                                failures.append(f"answered as of {answer.headers['x-s3t-request']}, before {floor}")
                            break
                        problem = f"{answer.status_code} {answer.text}"
                        retried += 1
                    if problem:
                        failures.append(problem)

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        begun, asked = time.monotonic(), 0
        while time.monotonic() - begun < seconds:
            time.sleep(seconds / 12)
            if asked == 4:
                os.kill(first.worker(), signal.SIGKILL)
            if asked < min(len(people), 8):
                done = (first, second)[asked % 2].ask(people[asked])
                assert done.status_code == 200, done.text
                returned.append((time.monotonic(), done.json()["receipt"]["request"]))
                asked += 1
        end.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(took) > clients
        assert opened.request_number == asked
        counted = sum(
            value
            for server in (first, second)
            for name, value in server.metrics().items()
            if name[:2] == ("s3t_answers_total", "/predict") and name[2] == "200"
        )
        assert counted >= len(took)
        took.sort()
        print(
            f"{len(took)} answers in {seconds:.0f} s, {retried} retried, {asked} forgotten, "
            f"p50 {took[len(took) // 2] * 1000:.0f} ms, p99 {took[int(len(took) * 0.99)] * 1000:.0f} ms"
        )
        os.kill(first.worker(), signal.SIGKILL)
        time.sleep(1.5)  # the next one is still importing
        assert first.interrupt() == 0
        for server in (first, second):
            assert not re.search(r"user-\d|Traceback", Path(server.log.name).read_text())


@pytest.mark.nightly
def test_a_new_fit_is_taken_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make())
    with servers(tmp_path, store, 1, renew_every=0.5) as (server,):

        def answer() -> torch.Tensor:
            found = httpx.post(f"http://127.0.0.1:{server.port}/predict", json={"inputs": X[0].tolist()}, timeout=60)
            assert found.status_code == 200, found.text
            return torch.tensor(found.json())

        assert server.ask("user-1").status_code == 200
        before = answer()
        fit(store, People.make())
        with EnsemblePredictor.from_store(store, Classifier()) as served, torch.no_grad():
            expected = served(X[:1])[0]
        assert not torch.allclose(before, expected)
        deadline = time.monotonic() + 60
        while not torch.allclose(answer(), expected):
            assert time.monotonic() < deadline
            time.sleep(0.1)
