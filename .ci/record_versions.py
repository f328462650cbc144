"""Writes a row of docs/versions.md: what is installed where this runs, and what came of the tests.

Usage: record_versions.py KIND TIER RESULTS, where RESULTS is the file of `pytest --junitxml`.
"""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[1] / "docs" / "versions.md"
BEGIN, END = "<!-- rows: written by .ci/versions -->", "<!-- end of rows -->"
KINDS = ["lowest", "newest", "pre"]
PACKAGES = ["lightning", "torch", "transformers", "peft", "timm", "torchmetrics", "jsonargparse"]


def installed(package: str) -> str:
    """Returns the version of a package, or a dash."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def outcome(results: Path, tier: str) -> str:
    """Returns the counts of a test run, as in `8 failed, 2420 passed, 2 skipped (whole)`."""
    if not results.exists():
        return "failed: no tests were run"
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(results).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    parts = [(failed, "failed"), (passed, "passed"), (counts["skipped"], "skipped")]
    return ", ".join(f"{count} {word}" for count, word in parts if count) + f" ({tier})"


def replace_row(page: str, kind: str, row: str) -> str:
    """Returns the page with the row of a kind replaced, or added, and all others as they were."""
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    lines = table.strip().splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines[2:]} | {kind: row}
    table = "\n".join([*lines[:2], *(rows[kind] for kind in KINDS if kind in rows)])
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(kind: str, tier: str, results: str) -> None:
    """Writes the row of a kind."""
    today = datetime.now(timezone.utc).date().isoformat()
    versions = [platform.python_version(), *map(installed, PACKAGES)]
    row = f"| {' | '.join([kind, today, *versions, outcome(Path(results), tier)])} |"
    PAGE.write_text(replace_row(PAGE.read_text(), kind, row))


if __name__ == "__main__":
    main(*sys.argv[1:])
