"""Runs the cases of a group in this process, one after the other: `python -m tests.ecosystem.run_cases GROUP RESULTS`."""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main(group: str, results: Path, chosen: str = "") -> None:
    """Run what has no result yet, and add a line of JSON for each case.

    Args:
        group: A module of `tests.ecosystem.groups`.
        results: The file.
        chosen: A regular expression that the names of cases have to match.
    """
    warnings.filterwarnings("ignore")
    module = importlib.import_module(f"tests.ecosystem.groups.{group}")
    from tests.ecosystem.cases import CASES
    from tests.ecosystem.first_list import FIRST
    from tests.ecosystem.story import tell

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    done = {json.loads(line)["name"] for line in results.read_text().splitlines()} if results.exists() else set()
    # what was tried first comes first, and of that what takes the least time
    for case in sorted(
        CASES, key=lambda case: (case.name not in FIRST, ["refused", "warned", "behaves", "exact"].index(case.outcome))
    ):
        if case.name in done or not re.search(chosen, case.name):
            continue
        row = {"name": case.name, "group": group, "needed": case.needed, "reason": case.reason, "error": "", "note": ""}
        row["outcome"] = case.outcome
        row["versions"] = versions(module.LIBRARIES)
        begun = time.monotonic()
        _add(results, {**row, "error": "the process died"})
        try:
            with tempfile.TemporaryDirectory(prefix="s3t-ecosystem-", ignore_cleanup_errors=True) as folder:
                row["note"] = tell(case, Path(folder))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            row["error"] = f"{type(error).__name__}: {error}"
            traceback.print_exc(file=sys.stderr)
        row["seconds"] = round(time.monotonic() - begun, 1)
        _add(results, row)
        print(f"{row['seconds']:6.1f} s  {case.name}: {row['error'][:300] or 'as expected'}", flush=True)


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """The versions of the libraries of a group."""
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _add(results: Path, row: dict[str, object]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4])
