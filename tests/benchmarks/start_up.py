"""What `import lightning_s3t` adds to importing what it needs: `python -m tests.benchmarks.start_up`. Mark: 10 %."""

from __future__ import annotations

import statistics
import subprocess
import sys

from tests.benchmarks.timing import ratio, take_turns

ROUNDS, MARK = 7, 1.10
BASE = "import lightning, peft"


def run(code: str) -> None:
    """Run a program of one line."""
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> int:
    """Time both in turn, and look at what is imported without need; return 1 above the mark."""
    contestants = {
        "without": lambda: run(BASE),
        "with": lambda: run(f"{BASE}; import lightning_s3t"),
        "with, and S3T used": lambda: run(f"{BASE}; from lightning_s3t import S3T, EnsembleModule"),
    }
    times = take_turns(contestants, ROUNDS, "importing")
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds):.2f} s, {ratio(seconds, times['without'])}")
    code = f"{BASE}; import sys; before = set(sys.modules); from lightning_s3t import S3T, EnsembleModule; "
    code += "print('imported besides:', *sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    run(code)
    return int(ratio(times["with, and S3T used"], times["without"]).median > MARK)


if __name__ == "__main__":
    sys.exit(main())
