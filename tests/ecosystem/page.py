"""The page docs/ecosystem.md, written from what was run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD = """# The ecosystem

Other people's software, tried with S3T. This page is written by `python -m tests.ecosystem`, which installs the libraries,
runs every case and checks the result; there is a row for each case that was run. The cases are in
[tests/ecosystem/groups](../tests/ecosystem/groups).

**exact**: the script was fitted, its module was as before; it was served and measured; then a subject asked. In two stores,
one with the subject's rows replaced by something else, all that could still serve was bitwise equal, and nothing that had
seen the rows served on; a second fit gave bit for bit what a first fit without the subject gives; `s3t store verify` found
nothing wrong. Networks are small and untrained.
"""


def write_page(results: Path, page: Path) -> None:
    """Write the page.

    Args:
        results: The folder of the groups' results.
        page: The page.
    """
    rows = [row for file in sorted(results.glob("*.jsonl")) for row in latest(file.read_text().splitlines())]
    good = [row for row in rows if not row["error"]]
    unchanged = sum(not row["needed"] and not row["reason"] for row in good)
    lines = sum(bool(row["needed"]) for row in good)
    refused = sum(bool(row["reason"]) for row in good)
    summary = (
        f"**{len(rows)} cases: {unchanged} worked unchanged, {lines} needed the arguments that are named, {refused} were "
        f"refused with a reason, {len(rows) - len(good)} did not do what was expected.**"
    )
    parts = [HEAD, summary]
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


def _versions(rows: list[dict[str, Any]]) -> str:
    versions = {name: version for row in rows for name, version in row["versions"].items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _table(rows: list[dict[str, Any]]) -> str:
    table = ["| case | result | needed, or why not |", "| --- | --- | --- |"]
    table += ["| " + " | ".join(_cell(cell) for cell in (row["name"], *_result(row))) + " |" for row in rows]
    return "\n".join(table)


def _result(row: dict[str, Any]) -> tuple[str, str]:
    if row["error"]:
        return "**not as expected**", row["error"][:300]
    if row["reason"]:
        return "refused", row["reason"]
    result = "exact" if row.get("outcome", "exact") == "exact" else "works"
    return result, "; ".join(filter(None, (row["needed"] and f"`{row['needed']}`", row["note"])))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
