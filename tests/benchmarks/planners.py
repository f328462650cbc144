"""`optimal` against every other planner, cell by cell: `python -m tests.benchmarks.planners [--quick]`.

A cell is a number of slices, a budget and a prior. What is compared is the objective of `optimal`: the expected length of
the best surviving prefix, summed over the coming requests. Fails if a ratio is below 1.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_s3t.plan import assess, compare, plan_sequences

OTHERS = ("cyclic", "bms", "conditional", "random")
TOLERANCE = 1e-9


def prior_of(name: str, slices: int) -> list[float] | None:
    """Return a prior by its name: all alike, Zipf's law, each half of the one before, drawn."""
    if name == "uniform":
        return None
    numbers = {
        "zipf": 1 / np.arange(1, slices + 1),
        "halving": 0.5 ** np.arange(slices),
        "random": np.random.default_rng(slices).dirichlet(np.ones(slices)),
    }[name]
    found: list[float] = (numbers / numbers.sum()).tolist()
    return found


@dataclass(frozen=True)
class Cell:
    """What came out for one number of slices, budget and prior."""

    slices: int
    budget: int
    prior: str
    ratios: dict[str, float]
    gap: float
    seconds: float


def measure(case: tuple[int, int, str]) -> Cell:
    """Plan one cell with every planner."""
    slices, budget, name = case
    prior = prior_of(name, slices)
    start = time.perf_counter()
    orders = plan_sequences("optimal", slices, budget, prior=prior)
    seconds = time.perf_counter() - start
    best = assess(orders, prior)
    ratios = {}
    for planner in OTHERS:
        used = prior if planner in ("bms", "conditional") else None
        other = assess(plan_sequences(planner, slices, budget, prior=used), prior)
        ratios[planner] = best.value / other.value
    return Cell(slices, budget, name, ratios, best.gap, seconds)


def cases(largest: int) -> list[tuple[int, int, str]]:
    """Return the grid: every budget up to twice the slices."""
    return [
        (slices, budget, prior)
        for slices in range(2, largest + 1)
        for budget in range(1, min(2 * slices, math.factorial(slices)) + 1)
        for prior in ("uniform", "zipf", "halving", "random")
    ]


def table(cells: Iterable[Cell], title: str, by: str) -> Table:
    """Show the smallest and the mean ratio of groups of cells."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        part = cell.budget / cell.slices
        name = cell.prior if by == "prior" else ("B < L" if part < 1 else "B = L" if part == 1 else "B > L")
        groups.setdefault(name, []).append(cell)
    found = Table(title=title)
    for heading in (by, "cells", *(f"over {name}: least, mean" for name in OTHERS), "gap to bound", "seconds at most"):
        found.add_column(heading, justify="right")
    for name, members in groups.items():
        ratios = {other: [cell.ratios[other] for cell in members] for other in OTHERS}
        found.add_row(
            name,
            str(len(members)),
            *(f"{min(values):.3f}, {sum(values) / len(values):.3f}" for values in ratios.values()),
            f"{sum(cell.gap for cell in members) / len(members):.1%} (at most {max(c.gap for c in members):.1%})",
            f"{max(cell.seconds for cell in members):.1f}",
        )
    return found


def large_model() -> float:
    """Return how many seconds 24 slices and 24 orders take, with every planner that is compared by `s3t plan`."""
    start = time.perf_counter()
    compare(5, 24, 24)
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """Run the grid; return 1 if a ratio is below 1."""
    console = Console(width=150)
    grid = cases(6 if "--quick" in arguments else 12)
    with multiprocessing.get_context("spawn").Pool() as pool:
        done = pool.imap_unordered(measure, grid)
        cells = list(track(done, "planning", total=len(grid), console=Console(stderr=True)))
    console.print(table(cells, "optimal over the others, by budget", "budget"))
    console.print(table(cells, "optimal over the others, by prior", "prior"))
    worst = min(
        ((ratio, other, cell) for cell in cells for other, ratio in cell.ratios.items()), key=lambda found: found[0]
    )
    ratio, other, cell = worst
    console.print(
        f"Least ratio: {ratio:.6f}, over {other} at L={cell.slices}, B={cell.budget}, prior {cell.prior}. "
        f"{len(cells)} cells."
    )
    console.print(f"A plan of 24 slices and 24 orders, four planners compared: {large_model():.1f} s.")
    return int(any(ratio < 1 - TOLERANCE for cell in cells for ratio in cell.ratios.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
