"""The demo, at tiny sizes: the course of things, not the accuracies."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_s3t.cli import main
from lightning_s3t.demo import QUICK, run_demo
from lightning_s3t.demo.data import Digits


def test_the_demo_forgets_until_nothing_is_left_and_the_guarantees_hold(tmp_path: Path) -> None:
    result = run_demo(tmp_path, QUICK)
    assert [check.name for check in result.checks] == ["Non-interference", "Rebuild is scratch", "Nothing stays behind"]
    assert all(check.holds for check in result.checks)
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    for course in result.courses.values():
        assert course.depths[0] == QUICK.shards * QUICK.slices
        assert (course.units[-1], course.depths[-1]) == (0, 0)
        assert course.units == sorted(course.units, reverse=True)
        assert len(course.accuracies) == course.requests + 1
    assert result.courses["S3T"].requests >= result.courses["SISA"].requests


def test_the_command_tells_the_story(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--output", str(tmp_path / "out"), "--seed", "1"]) == 0
    told = capsys.readouterr().out
    for part in ("One callback trains by slices", "S3T ensemble", "A forget took", "Non-interference"):
        assert part in told
    assert (tmp_path / "out" / "forgetting.png").exists()


def test_the_parts_of_the_digits_share_no_row() -> None:
    digits = Digits.load(people=10, seed=0)
    assert len(digits.public) + len(digits.private) + len(digits.test) == 1797
    assert set(digits.private.owners) == {f"person-{number}" for number in range(10)}
    assert set(digits.public.owners) == {""}
