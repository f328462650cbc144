"""The demo, at tiny sizes: the course of things, not the accuracies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lightning_s3t.cli import main
from lightning_s3t.demo import QUICK, run_demo
from lightning_s3t.demo.checks import check_guarantees
from lightning_s3t.demo.data import Digits, Rows
from lightning_s3t.demo.model import DigitClassifier, accuracy


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


@pytest.mark.nightly
def test_the_command_tells_the_story(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--output", str(tmp_path / "out"), "--seed", "1"]) == 0
    told = capsys.readouterr().out
    for part in ("One callback trains by slices", "A forget took", "Non-interference"):
        assert part in told
    for model in ("public model", "full fine-tune", "S3T ensemble"):
        assert re.search(rf"{model}.*?\d+\.\d%", told), f"the accuracy of the {model} is printed"
    assert (tmp_path / "out" / "forgetting.png").exists()


def test_the_parts_of_the_digits_share_no_row() -> None:
    digits = Digits.load(people=10, seed=0)
    assert len(digits.public) + len(digits.private) + len(digits.test) == 1797
    assert set(digits.private.owners) == {f"person-{number}" for number in range(10)}
    assert set(digits.public.owners) == {""}


class MixedUpRows(Rows):
    """Rows whose changes for one person touch everybody's, and whose first person's name is everywhere."""

    def of(self, people: int) -> Rows:
        return MixedUpRows(
            self.images, self.labels, ["1" if owner == self.owners[0] else owner for owner in self.owners]
        )

    def with_noise_for(self, person: str) -> Rows:
        return Rows(self.images.flip(-1), self.labels, self.owners)

    def without(self, person: str) -> Rows:
        rest = super().without(person)
        return Rows(rest.images.flip(-1), rest.labels, rest.owners)


@pytest.mark.nightly
def test_a_guarantee_that_does_not_hold_is_said_not_to(tmp_path: Path) -> None:
    rows = Digits.load(people=40, seed=0).private.of(people=20)
    torch.manual_seed(0)
    model = DigitClassifier(learning_rate=3e-3, width=QUICK.width, depth=QUICK.depth)
    checks = check_guarantees(model, MixedUpRows(rows.images, rows.labels, rows.owners), tmp_path, QUICK)
    assert [check.holds for check in checks] == [False, False, False]


def test_accuracy_leaves_the_model_in_the_mode_that_it_was_in() -> None:
    model = DigitClassifier(learning_rate=1e-3, width=QUICK.width, depth=QUICK.depth)
    accuracy(model, Digits.load(people=10, seed=0).test)
    assert model.training
