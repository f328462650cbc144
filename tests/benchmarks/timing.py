"""Ratios of times: contestants take turns (A B A B), so that a slow minute of the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing took as another, over several rounds.

    Attributes:
        median: The median of the rounds' ratios.
        low: The least.
        high: The greatest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    title: str,
    warm_up: bool = True,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time contestants in turn, after one round that does not count.

    Args:
        contestants: What to time, by name.
        rounds: How often.
        title: For the progress bar.
        warm_up: Whether there is such a round; contestants that take minutes had better be warmed up by shorter ones.
        prepare: Called before each, and not timed.

    Returns:
        Seconds, by name, a number a round.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    uncounted = int(warm_up)
    for number in track(range(rounds + uncounted), title, console=Console(stderr=True), transient=True):
        for name, run in contestants.items():
            prepare()
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():  # what was asked of a GPU may not be done yet
                torch.cuda.synchronize()
            if number >= uncounted:
                found[name].append(time.perf_counter() - start)
    return found


def ratio(times: list[float], against: list[float]) -> Ratio:
    """Compare two contestants round by round.

    Args:
        times: One's seconds.
        against: The other's.
    """
    ratios = [mine / other for mine, other in zip(times, against, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
