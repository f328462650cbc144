"""The demo, at tiny sizes: the course of things, not the accuracies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lightning_s3t.cli import main
from lightning_s3t.zoo.datamodules import OwnedRows
from lightning_s3t.zoo.demo import QUICK, run_demo
from lightning_s3t.zoo.demo.digits import Digits, accuracy
from lightning_s3t.zoo.demo.guarantees import Comparison, check_guarantees
from lightning_s3t.zoo.demo.training import make_model


def test_the_demo_forgets_on_and_on_and_the_guarantees_hold(tmp_path: Path) -> None:
    result = run_demo(tmp_path, QUICK)
    assert [check.name for check in result.checks] == ["Non-interference", "Rebuild is scratch", "Nothing stays behind"]
    assert all(check.holds for check in result.checks)
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    for course in result.trajectories.values():
        assert course.depths[0] == QUICK.shards * QUICK.slices
        assert (course.units[-1], course.depths[-1]) == (0, 0)
        assert course.units == sorted(course.units, reverse=True)
        assert len(course.accuracies) == course.requests + 1
    s3t, sisa = result.trajectories["S3T"], result.trajectories["SISA"]
    assert s3t.units_gone_after >= sisa.units_gone_after == sisa.dark_after
    assert s3t.dark_after is None
    assert s3t.requests == QUICK.people * 9 // 10


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
    images, labels = digits.test
    assert len(digits.public) + len(digits.private) + len(images) == 1797
    assert len(images) == len(labels) == 400
    assert set(digits.private.owners) == {f"person-{number}" for number in range(10)}
    assert len(set(digits.public.owners)) == len(digits.public)


def test_only_the_rows_of_the_person_are_replaced_or_left_out() -> None:
    compared = Comparison.of(Digits.load(people=10, seed=0).private, people=4)
    assert len(set(compared.rows.owners)) == 4
    changed = [
        owner
        for owner, (image, _), (noise, _) in zip(
            compared.rows.owners, compared.rows.rows, compared.with_noise.rows, strict=True
        )
        if not torch.equal(image, noise)
    ]
    assert set(changed) == {compared.person}
    assert len(changed) + len(compared.without) == len(compared.rows)
    assert compared.person not in compared.without.owners


@pytest.mark.nightly
def test_a_guarantee_that_does_not_hold_is_said_not_to(tmp_path: Path) -> None:
    right = Comparison.of(Digits.load(people=40, seed=0).private, people=20)
    flipped = [
        OwnedRows([(image.flip(-1), label) for image, label in rows.rows], rows.owners)
        for rows in (right.rows, right.without)
    ]
    # the changes for one person touch the rows of all, and that person's name "1" is in every file
    owners = ["1" if owner == right.person else owner for owner in right.rows.owners]
    wrong = Comparison("1", OwnedRows(right.rows.rows, owners), OwnedRows(flipped[0].rows, owners), flipped[1])
    checks = check_guarantees(make_model(QUICK), wrong, tmp_path, QUICK)
    assert [check.holds for check in checks] == [False, False, False]


def test_accuracy_leaves_the_model_in_the_mode_that_it_was_in() -> None:
    model = make_model(QUICK)
    accuracy(model, Digits.load(people=10, seed=0).test)
    assert model.training
