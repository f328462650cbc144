"""Units on a Ray cluster: `python -m tests.benchmarks.ray_units [--quick]`. Needs ray, and an otherwise idle machine.

1. The overhead of a unit: chains of tiny units on a cluster of one machine, against the same fit in processes of this machine,
   in turn. It is the time from fit to fit divided by the units, without the units' own training; mark: 0.5 s a unit on the
   cluster. What the script does for a unit one after another (begin, start, commit) is measured in the same fits.
2. 10,000 units on 256 GPUs, simulated with these figures: the order of the plan, the queue that gives units out, one script
   that begins and commits them, and training times that grow with the stage. Mark: at most 1.1 times the larger of
   the critical path and work / 256. What a real cluster adds is not in it: networks, more than one actor, a ledger on PostgreSQL.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from lightning_s3t.executors.cluster.ray_processes import RayProcesses
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_queue import UnitQueue
from lightning_s3t.executors.unit_store import UnitStore
from lightning_s3t.plan import order_by_worth, plan_sequences, units_of
from lightning_s3t.plan.cost import compute_per_sample, stage_prices
from lightning_s3t.store import Store
from tests.people import Classifier, People, PeopleData, make_trainer

UNITS, GPUS, OVERHEAD_MARK, WHOLE_MARK = 10_000, 256, 0.5, 1.1
# shards, slices, and the seconds that a unit trains on average; many shards with short chains, and few with long ones
CASES = ((250, 8, 30.0), (250, 8, 60.0), (250, 8, 600.0), (50, 10, 600.0), (25, 20, 600.0))


@dataclass
class Steps:
    """What the script does for units, one after another.

    Attributes:
        seconds: By step.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, step: str) -> float:
        """The usual time of a step."""
        return statistics.median(self.seconds[step])


@contextmanager
def measured(steps: Steps) -> Iterator[None]:
    """Measures the steps while the block runs."""
    parts: list[tuple[Any, str]] = [(UnitStore, "begin"), (UnitStore, "commit"), (RayProcesses, "start")]
    originals = [getattr(owner, name) for owner, name in parts]

    def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                steps.seconds.setdefault(name, []).append(time.perf_counter() - start)

        return call

    for (owner, name), original in zip(parts, originals, strict=True):
        setattr(owner, name, timed(name, original))
    try:
        yield
    finally:
        for (owner, name), original in zip(parts, originals, strict=True):
            setattr(owner, name, original)


def fit(store: Path, executor: str, shards: int) -> float:
    """Fits, and returns the seconds a unit took beside its training."""
    trainer = make_trainer(store, epochs=1, executor=executor, shards=shards, slices=2, budget=2)
    trainer.fit(Classifier(), datamodule=PeopleData(People.make(40 * shards)))
    (s3t,) = (callback for callback in trainer.callbacks if hasattr(callback, "summary"))  # type: ignore[attr-defined]
    with Store.open(store) as opened:
        trained = [record.provenance["duration_s"] for record in opened.alive().values()]
    return float((s3t.summary.seconds - sum(trained)) / len(trained))


def measure(quick: bool) -> tuple[dict[str, list[float]], Steps]:
    """Returns the overheads a unit of both executors, and the steps of the script for the cluster."""
    found: dict[str, list[float]] = {"local": [], "ray": []}
    steps = Steps()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(1 if quick else 3):
                for executor in found:
                    with measured(steps if executor == "ray" else Steps()):
                        found[executor].append(fit(Path(folder, f"{executor}-{number}"), executor, 2 if quick else 10))
    finally:
        cluster.shutdown()
    return found, steps


def plan_of(shards: int, slices: int, mean: float, seed: int = 0) -> tuple[list[PlannedUnit], list[float]]:
    """Returns 10,000 units in the order that a fit follows, and the seconds that each trains."""
    sequences = plan_sequences("optimal", slices, {"units": UNITS // shards})
    units = units_of(shards, sequences)
    order = order_by_worth(units, [], slices)
    cost = cost_of_stages(slices)
    draw = random.Random(seed)
    weights = [cost[unit.stage - 1] * draw.uniform(0.8, 1.2) for unit in order]
    scale = mean * len(weights) / sum(weights)
    return [PlannedUnit(unit, "key", 1, False) for unit in order], [weight * scale for weight in weights]


def cost_of_stages(slices: int) -> list[float]:
    """Returns the relative time of a unit of each stage, as a fit expects it."""
    return [float(cost) for cost in stage_prices(slices, "cumulative", "full") * compute_per_sample(slices)]


def simulate(
    slices: int, build: list[PlannedUnit], seconds: list[float], serial: dict[str, float], overhead: float
) -> float:
    """Returns how long the fit takes.

    Args:
        slices: Number of slices.
        build: The units, in order.
        seconds: That each trains.
        serial: The seconds of the script's steps.
        overhead: Seconds from a unit's start to its result, beside its training.
    """
    duration = {planned.unit: one for planned, one in zip(build, seconds, strict=True)}
    expected = cost_of_stages(slices)
    queue = UnitQueue(build, lambda planned: expected[planned.unit.stage - 1])
    now, free = 0.0, GPUS
    running: list[tuple[float, Any]] = []
    while not queue.done:
        while free:
            start = time.perf_counter()
            planned = queue.take(GPUS)
            now += time.perf_counter() - start  # the queue is the real one, and so is its time
            if planned is None:
                break
            now += serial["begin"] + serial["start"]
            free -= 1
            heapq.heappush(running, (now + overhead + duration[planned.unit], planned.unit))
        end, unit = heapq.heappop(running)
        now = max(now, end) + serial["commit"]
        free += 1
        queue.end(unit)
    return now


def bounds(build: list[PlannedUnit], seconds: list[float]) -> tuple[float, float]:
    """Returns the critical path, and the work of a GPU if all had the same."""
    path: dict[Any, float] = {}
    for planned, one in zip(build, seconds, strict=True):
        parent = planned.unit.parent
        path[planned.unit] = one + (path[parent] if parent is not None else 0.0)
    return max(path.values()), sum(seconds) / GPUS


def main(arguments: list[str] | None = None) -> int:
    """Measures, simulates, prints; returns 1 above a mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few units, to see that it runs")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    found, steps = measure(quick)
    median = {executor: statistics.median(times) for executor, times in found.items()}
    serial = {step: steps.median(step) for step in ("begin", "start", "commit")}
    console = Console()
    table = Table("", "seconds a unit", title="Overhead of a unit, beside its training")
    table.add_row("processes of this machine", f"{median['local']:.3f}")
    table.add_row("a Ray cluster of one machine", f"{median['ray']:.3f}")
    for step, one in serial.items():
        table.add_row(f"of it the script's: {step}", f"{one:.4f}")
    console.print(table)

    heads = ("shards", "slices", "a unit trains", "critical path", "work / 256", "whole", "ratio")
    table = Table(*heads, title=f"{UNITS} units, {GPUS} GPUs")
    ratios = []
    for shards, slices, mean in CASES:
        build, seconds = plan_of(shards, slices, mean)
        path, share = bounds(build, seconds)
        whole = simulate(slices, build, seconds, serial, max(median["ray"] - sum(serial.values()), 0.0))
        ratios.append(whole / max(path, share))
        times = (f"{one:.0f} s" for one in (mean, path, share, whole))
        table.add_row(str(shards), str(slices), *times, f"{ratios[-1]:.3f}")
    console.print(table)
    return int(median["ray"] > OVERHEAD_MARK or max(ratios) > WHOLE_MARK)


if __name__ == "__main__":
    sys.exit(main())
