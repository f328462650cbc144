"""The simulator: trials a second, and whether time is linear in them: `python -m tests.benchmarks.simulator`.

The mark is 100,000 trials at 5 shards, 6 slices and 6 orders in 10 seconds on one core.
"""

from __future__ import annotations

import statistics
import sys
import time

from rich.console import Console
from rich.table import Table

from lightning_s3t.plan import optimal, simulate

LIMIT = 10.0  # seconds
LOOKS = (1, 5, 20, 50)


def seconds(trials: int, requester: str) -> float:
    """Return how long a simulation takes."""
    start = time.perf_counter()
    sizes = 50 if requester in ("subject", "sample") else None
    simulate(5, optimal(6, 6), LOOKS, trials, requester=requester, sizes=sizes)  # type: ignore[arg-type]
    return time.perf_counter() - start


def main() -> int:
    """Time each requester at 10,000 and 100,000 trials in turn; return 1 above the mark."""
    found = Table(
        "requester", "10,000 trials", "100,000 trials", "ratio (linear: 10)", title="5 shards, 6 slices, 6 orders"
    )
    slow = False
    for requester in ("slice", "subject", "sample", "adaptive"):
        seconds(1000, requester)
        pairs = [(seconds(10_000, requester), seconds(100_000, requester)) for _ in range(3)]
        small, large = (statistics.median(values) for values in zip(*pairs, strict=True))
        found.add_row(requester, f"{small:.2f} s", f"{large:.2f} s", f"{large / small:.1f}")
        slow |= large > LIMIT
    Console().print(found)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
