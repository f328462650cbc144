"""Installs the libraries in environments of their own, runs every case, and writes docs/ecosystem.md.

    python -m tests.ecosystem                        # everything: an hour on two cores
    python -m tests.ecosystem --group networks       # one group
    python -m tests.ecosystem --first                # those that were tried before anything was mended for them
    python -m tests.ecosystem --case "torchgeo.*"    # some cases, by a regular expression
    python -m tests.ecosystem --python networks=/some/venv/bin/python   # an environment that is there already

Results are kept in `build/ecosystem/*.jsonl` in between: what has one is not run again. `--again` begins anew. The page
has a row for each case that was run, and for no other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.ecosystem.environments import GROUPS, environment
from tests.ecosystem.first_list import FIRST
from tests.ecosystem.page import latest, write_page

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "ecosystem"
# before they are imported; small models on many threads only wait for each other
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem")
    parser.add_argument("--group", choices=GROUPS, action="append", help="only this group; may be repeated")
    parser.add_argument("--case", default="", help="only cases whose name matches this regular expression")
    parser.add_argument("--first", action="store_true", help="only cases of the list that was tried first")
    parser.add_argument("--python", action="append", default=[], help="GROUP=PATH of an interpreter to use for a group")
    parser.add_argument("--parallel", default=1, type=int, help="train so many units of a fit at the same time")
    parser.add_argument("--again", action="store_true", help="throw earlier results of these cases away")
    parser.add_argument("--failed", action="store_true", help="run again what has not done what was expected")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    asked = parser.parse_args()
    if asked.first:
        asked.case = f"^({'|'.join(map(re.escape, FIRST))})$"
    BUILD.mkdir(parents=True, exist_ok=True)
    pythons = dict(pair.split("=", 1) for pair in asked.python)
    for group in () if asked.page_only else asked.group or GROUPS:
        results = BUILD / f"{group}.jsonl"
        if asked.again:
            results.unlink(missing_ok=True)
        if asked.failed and results.exists():
            rows = latest(results.read_text().splitlines())
            results.write_text("".join(json.dumps(row) + "\n" for row in rows if not row["error"]))
        python = pythons.get(group) or environment(group, BUILD)
        while (
            _run(python, group, results, asked.case, asked.parallel) < 0
        ):  # a case has taken the process with it: the next ones follow
            print(f"{group}: the process died; going on with the next case", file=sys.stderr)
    write_page(BUILD, ROOT / "docs" / "ecosystem.md")


def _run(python: str | Path, group: str, results: Path, chosen: str, parallel: int) -> int:
    command = [str(python), "-m", "tests.ecosystem.run_cases", group, str(results), chosen]
    variables = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT), "ECOSYSTEM_PARALLEL": str(parallel)}
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    main()
