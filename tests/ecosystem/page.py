"""The page docs/ecosystem.md, written from what was run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.ecosystem.first_list import FIRST

HEAD = """# Other libraries

Other people's software, tried with S3T. `python -m tests.ecosystem` writes this page: it installs the libraries,
runs every case and checks the result. Each case that was run has a row. The cases are in
[tests/ecosystem/groups](../tests/ecosystem/groups). The networks are small and untrained, and everything ran on a CPU.

- **exact**: the script was fitted, and its module was unchanged. The ensemble was served and measured. Then a subject was
  forgotten. What could still serve was bit for bit what a fit that never saw the subject gives, and so was everything after a
  second fit. `s3t store verify` found nothing wrong.
- **works**: the case is not about training, or not about all of it. It checks what its name says.
- **refused**: the fit, or the call, ends with an error that names the cause and what to do. **warned of**: it continues,
  with such a warning. The third column says why.
- **needed**: the arguments or lines that had to be added to the script. Sizes (`shards`, `slices`, `budget`) do not count
  unless there was no choice, and neither does `subjects`.
"""
TITLES = {
    "unchanged": "worked unchanged",
    "needed lines": "needed the lines that are named",
    "refused": "refused, or warned of, with the reason",
    "poor message": "refused with a poor message",
    "crashed": "crashed",
    "silently wrong": "silently wrong",
    "not as expected": "not as expected",
    "not run": "not run on this page",
}


def write_page(results: Path, page: Path) -> None:
    """Write the page.

    Args:
        results: The folder of the groups' results.
        page: The page.
    """
    rows = [row for file in sorted(results.glob("*.jsonl")) for row in latest(file.read_text().splitlines())]
    parts = [HEAD, _summary(rows)]
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        parts.append(f"\n## {group.replace('_', ' ').capitalize()}\n\n{_versions(own)}\n\n{_table(own)}")
    page.write_text("\n".join(parts) + "\n")


def latest(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The last line of each case: the first says that it has begun, the last is what came of it."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        found[row["name"]] = row
    return list(found.values())


def outcome(row: dict[str, Any]) -> str:
    """What came of a case, in the words of `first_list`."""
    if row["error"]:
        return "not as expected"
    if row["reason"]:
        return "refused"
    return "needed lines" if row["needed"] else "unchanged"


def _summary(rows: list[dict[str, Any]]) -> str:
    """How many of the first cases, and of all, came to what."""
    now = {row["name"]: outcome(row) for row in rows}
    before = Counter(FIRST.values())
    after = Counter(now.get(name, "not run") for name in FIRST)
    others = Counter(found for name, found in now.items() if name not in FIRST)
    table = [
        f"{len(rows)} cases were run. {len(FIRST)} of all cases were tried before S3T was changed for any of them: "
        'the column "at first" gives their results then.\n',
        f"| | the first {len(FIRST)}, at first | the first {len(FIRST)}, now | {sum(others.values())} others |",
        "| --- | --- | --- | --- |",
    ]
    table += [
        f"| {title} | {before[key]} | {after[key]} | {others[key]} |"
        for key, title in TITLES.items()
        if before[key] or after[key] or others[key] or key in ("crashed", "silently wrong")
    ]
    missing = [name for name in FIRST if name not in now]
    if missing:
        table.append(f"\nNot run on this page: {'; '.join(missing)}.")
    return "\n".join(table)


def _versions(rows: list[dict[str, Any]]) -> str:
    versions = {name: version for row in rows for name, version in row["versions"].items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _table(rows: list[dict[str, Any]]) -> str:
    table = ["| case | result | needed, or why not | at first |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = (row["name"], *_result(row), FIRST.get(row["name"], ""))
        table.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(table)


def _result(row: dict[str, Any]) -> tuple[str, str]:
    if row["error"]:
        return "**not as expected**", row["error"][:300]
    if row["reason"]:
        return "warned of" if row["outcome"] == "warned" else "refused", row["reason"]
    result = "exact" if row["outcome"] == "exact" else "works"
    return result, "; ".join(filter(None, (row["needed"] and f"`{row['needed']}`", row["note"])))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
