"""All benchmarks in turn: `python -m tests.benchmarks`."""

from __future__ import annotations

import sys

from tests.benchmarks import ledger_scale, planners, simulator

if __name__ == "__main__":
    sys.exit(max(planners.main([]), simulator.main(), ledger_scale.main([])))
