"""The benchmarks in turn: `python -m tests.benchmarks`. Exits with 1 if one misses its mark.

Left out are those that take hours (`accuracy`, `floor_features`), that need software of another kind (`service_load`:
Caddy), or that have no mark (`text_comparison`, `trips`, `votes`).
"""

from __future__ import annotations

import sys

from tests.benchmarks import (
    changeover,
    compiled,
    floor,
    growth,
    isolation,
    ledger_postgres,
    ledger_scale,
    memory,
    parallel,
    planners,
    ray_units,
    scaling,
    serving,
    simulator,
    stages,
    start_up,
    training,
)

if __name__ == "__main__":
    sys.exit(
        max(
            planners.main([]),
            simulator.main(),
            ledger_scale.main([]),
            ledger_postgres.main([]),
            start_up.main(),
            training.main(),
            changeover.main([]),
            compiled.main(),
            stages.main(),
            memory.main(),
            serving.main([]),
            parallel.main(),
            scaling.main(),
            growth.main([]),
            isolation.main([]),
            floor.main([]),
            ray_units.main([]),
        )
    )
