"""The ledger at scale: `python -m tests.benchmarks.ledger_scale [largest power of ten, 6] [most units, 100000]`.

For stores of 10^4 subjects and more: how fast they are registered, how large the ledger and the process get, and how long
it takes to forget one, 100 and 10,000 of them. Beside it, with nothing of ours: unlinking as many files of the same size
and flushing the folder. The marks, for one subject: a 99th percentile under 20 ms beyond that, and a median that grows less
than 3 times from 10^4 subjects to the most.

Then for many units: how long a request takes that reaches one place, and one that reaches all of them, with as many subjects as
units and ten times as many units as places. The marks, for the most units: 50 ms for one subject; 10 s for
all, and at most 1.2 times as long for each subject as with a fifth of the units. Both sizes take turns, three times: a machine
that changes its pace between two runs would be taken for growth. The units have no files: how long unlinking takes is the
file system's, from a tenth of a second to minutes for 100,000.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_s3t.plan import cyclic, units_of
from lightning_s3t.store import Store
from lightning_s3t.store.disk.files import unlink_all
from lightning_s3t.store.ledgers.ledger import Artifact
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 5, "slices": 6, "seed": 0}}
UNITS = units_of(5, cyclic(6, 6))
BATCHES = {1: 100, 100: 20, 10_000: 3}
LIMIT_MS, LIMIT_GROWTH = 20.0, 3.0
SLICES = 10  # of a shard with as many orders: 100 units
ROUNDS = 3
LIMIT_ONE_MS, LIMIT_ALL_S, LIMIT_PER_SUBJECT = 50.0, 10.0, 1.2


@dataclass(frozen=True)
class Measured:
    """What came out for one number of subjects; times in milliseconds."""

    rate: float
    megabytes: float
    peak: float
    forget: dict[int, list[float]]
    unlink: list[float]
    poll: float


def build(store: Store) -> None:
    """Fill the store with units that are revoked and erased by the requests."""
    alive = store.alive()
    for unit in UNITS:
        if unit not in alive:
            session(store).start_unit(unit, "key").commit({"w": torch.rand(20_000)}, {})


def measure(subjects: int) -> Measured:
    """Register so many subjects, and forget some; in a process of its own, whose memory is looked at."""
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store", SETTINGS) as store:
        build(store)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        session(store).register(f"user-{number}" for number in range(subjects))
        rate = subjects / (time.perf_counter() - start)
        size = sum(path.stat().st_size for path in store.path.glob("ledger.db*")) / 2**20
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        ids = iter(range(subjects))
        forget: dict[int, list[float]] = {}
        unlink: list[float] = []
        for batch, times in BATCHES.items():
            forget[batch] = []
            for _ in range(times if batch * times < subjects else 0):
                build(store)
                people = [f"user-{next(ids)}" for _ in range(batch)]
                start = time.perf_counter()
                receipt = store.forget(people)
                forget[batch].append(1000 * (time.perf_counter() - start))
                if batch == 1:
                    unlink.append(unlink_alone(Path(folder), receipt.erased_files))
        poll = timeit.timeit(lambda: store.request_number, number=10_000) / 10_000
        return Measured(rate, size, peak, forget, unlink, 1e6 * poll)


def unlink_alone(folder: Path, files: int) -> float:
    """Return how long it takes to unlink so many files of a snapshot's size, and to flush their folder."""
    other = folder / "other"
    other.mkdir(exist_ok=True)
    paths = [other / str(number) for number in range(files)]
    for path in paths:
        path.write_bytes(b"\0" * 80_000)
    start = time.perf_counter()
    unlink_all(paths)
    return 1000 * (time.perf_counter() - start)


def rows(results: dict[int, Measured]) -> Iterator[tuple[str, ...]]:
    """Return the table's rows."""
    for subjects, found in results.items():
        one = sorted(found.forget[1])
        yield (
            f"{subjects:,}",
            f"{found.rate:,.0f}",
            f"{found.megabytes:,.1f} MiB",
            f"{found.peak:,.0f} MiB",
            f"{statistics.median(one):.1f}, {one[int(0.99 * (len(one) - 1))]:.1f} ms",
            f"{statistics.median(found.unlink):.1f} ms",
            *(f"{statistics.median(found.forget[n]):,.0f} ms" if found.forget[n] else "" for n in (100, 10_000)),
            f"{found.poll:.1f} us",
        )


@dataclass(frozen=True)
class Reached:
    """What came out for one number of units; times in seconds."""

    units: int
    one: list[float]
    all: float
    revoked: int

    @property
    def per_subject(self) -> float:
        """How long each subject of the request that reaches everything takes."""
        return self.all / self.units


def settings_for(units: int) -> dict[str, dict[str, int]]:
    """Returns the settings of a store in which each shard has 100 units."""
    return {"partition": {"shards": units // SLICES**2, "slices": SLICES, "seed": 0}}


def add_units(store: Store, units: int, after_each: Callable[[], None] = lambda: None) -> None:
    """Adds so many units without files (`commit` would flush each snapshot to the disk), 1000 in a transaction."""
    ledger, left = store._ledger, enumerate(units_of(units // SLICES**2, cyclic(SLICES, SLICES)))
    while chunk := list(islice(left, 1000)):
        with ledger.transaction():
            for number, unit in chunk:
                digest = f"{number:064x}"
                provenance = json.dumps({"files": [], "epochs": 10, "metrics": {"val_acc": 0.9}, "padding": "x" * 200})
                artifact = Artifact(str(unit), unit.cells, digest, digest, 0.5, provenance, 0)
                ledger.add(artifact, f"snapshots/{digest}.safetensors")
        after_each()


def reach(units: int) -> Reached:
    """Forget one subject after another, and then all who are left at once, where a shard has 100 units."""
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store", settings_for(units)) as store:
        add_units(store, units)
        people = [f"user-{number}" for number in range(units)]
        session(store).register(people)
        one = []
        for person in people[:50]:
            start = time.perf_counter()
            store.forget([person])
            one.append(time.perf_counter() - start)
        start = time.perf_counter()
        receipt = store.forget(people[50:])
        everyone = time.perf_counter() - start
        return Reached(units, one, everyone, len(receipt.revoked))


def show_reach(rounds: list[tuple[Reached, Reached]]) -> bool:
    """Print what requests take that reach one place, or all; return whether it is within the marks."""
    found = Table("units", "subjects", "forget 1: median, max", "forget all others", "units", "a subject")
    for one in [one for sizes in rounds for one in sizes]:
        found.add_row(
            f"{one.units:,}",
            f"{one.units:,}",
            f"{1000 * statistics.median(one.one):.1f}, {1000 * max(one.one):.1f} ms",
            f"{one.all:.2f} s",
            f"{one.revoked:,}",
            f"{1e6 * one.per_subject:.0f} us",
        )
    Console(width=150).print(found)
    least, most = rounds[0][0].units, rounds[0][1].units
    median = 1000 * statistics.median(seconds for _, one in rounds for seconds in one.one)
    everyone = statistics.median(one.all for _, one in rounds)
    growth = statistics.median(large.per_subject / small.per_subject for small, large in rounds)
    print(f"One subject of {most:,} units, median: {median:.1f} ms (mark: {LIMIT_ONE_MS:g}).")
    print(f"All subjects of {most:,} units, median: {everyone:.1f} s (mark: {LIMIT_ALL_S:g}).")
    print(f"A subject's share, against {least:,} units, median: {growth:.2f} times (mark: {LIMIT_PER_SUBJECT:g}).")
    return median <= LIMIT_ONE_MS and everyone <= LIMIT_ALL_S and growth <= LIMIT_PER_SUBJECT


def main(arguments: list[str]) -> int:
    """Run all sizes; return 1 above a mark."""
    largest, units = (*map(int, arguments), *(6, 100_000)[len(arguments) :])
    context = multiprocessing.get_context("spawn")
    results = {}
    for power in track(range(4, largest + 1), "registering and forgetting", console=Console(stderr=True)):
        with context.Pool(1) as pool:
            results[10**power] = pool.apply(measure, (10**power,))
    reached = []
    for _ in track(range(ROUNDS), "reaching one place, and all", console=Console(stderr=True)):
        sizes = []
        for number in (units // 5, units):
            with context.Pool(1) as pool:
                sizes.append(pool.apply(reach, (number,)))
        reached.append((sizes[0], sizes[1]))
    headings = ("subjects", "registered a second", "ledger", "memory", "forget 1: median, p99")
    found = Table(*headings, "unlink alone", "forget 100", "forget 10,000", "look for requests", title="The ledger")
    for row in rows(results):
        found.add_row(*row)
    Console(width=150).print(found)
    first, last = results[10**4], results[10**largest]
    growth = statistics.median(last.forget[1]) / statistics.median(first.forget[1])
    slowest = max(sorted(found.forget[1])[int(0.99 * (len(found.forget[1]) - 1))] for found in results.values())
    beside = slowest - min(statistics.median(found.unlink) for found in results.values())
    print(f"Median growth from 10^4 to 10^{largest} subjects: {growth:.2f} (mark: {LIMIT_GROWTH:g}).")
    print(f"Largest p99 beside the unlinking: {beside:.1f} ms (mark: {LIMIT_MS:g}).")
    within = show_reach(reached)
    return int(growth > LIMIT_GROWTH or beside > LIMIT_MS or not within)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
