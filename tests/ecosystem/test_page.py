"""The page counts what was run, and says what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.first_list import FIRST
from tests.ecosystem.page import write_page


def row(name: str, **found: Any) -> dict[str, Any]:
    nothing = {"needed": "", "reason": "", "error": "", "note": "", "outcome": "exact", "versions": {"torch": "2.14"}}
    return {"name": name, "group": "networks", **nothing, **found}


@pytest.fixture
def page(tmp_path: Path) -> str:
    rows = [
        row("max_steps", error="the process died"),
        row("max_steps"),
        row("LSTM", needed="adapter=None"),
        row("LazyLinear", outcome="refused", reason="a batch has to go through it before"),
        row("spectral_norm", error="AssertionError: a survivor depends on the person's rows"),
        row("schedulefree AdamW"),
    ]
    (tmp_path / "networks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    write_page(tmp_path, tmp_path / "page.md")
    return (tmp_path / "page.md").read_text()


def test_what_was_tried_first_is_counted_apart_from_the_others(page: str) -> None:
    assert "| worked unchanged | 46 | 1 | 1 |" in page
    assert "| needed the lines that are named | 9 | 1 | 0 |" in page
    assert "| refused, or warned of, with the reason | 22 | 1 | 0 |" in page
    assert "| crashed | 9 | 0 | 0 |" in page
    assert "| not as expected | 0 | 1 | 0 |" in page


def test_what_was_not_run_is_named(page: str) -> None:
    assert f"| not run on this page | 0 | {len(FIRST) - 4} | 0 |" in page
    assert "\nNot run on this page: " in page
    assert "LSTM;" not in page


def test_a_row_says_what_came_of_a_case_and_what_did_at_first(page: str) -> None:
    assert "| LSTM | exact | `adapter=None` | needed lines |" in page
    assert "| LazyLinear | refused | a batch has to go through it before | crashed |" in page
    assert "| spectral_norm | **not as expected** | AssertionError:" in page
