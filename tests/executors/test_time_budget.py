"""How long a unit is thought to take, and whether it is begun."""

from __future__ import annotations

from datetime import timedelta

import pytest

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.executors.time_budget import TimeBudget, seconds_of
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.plan import UnitId


def planned(rows: int) -> PlannedUnit:
    """A unit whose stage passes through half of the network and back, and costs as much as its rows."""
    return PlannedUnit(UnitId(0, (0,)), "key", rows, stale=False)


def test_the_first_unit_is_always_begun() -> None:
    assert TimeBudget(1e-9, slices=1, groups=1).has_time_for(planned(10**6))


def test_a_unit_that_would_not_end_in_time_is_not_begun() -> None:
    budget = TimeBudget(1000, slices=1, groups=1)
    budget.note(planned(10), 100)
    assert budget.has_time_for(planned(10))
    assert not budget.is_used_up
    assert not budget.has_time_for(planned(200))
    assert budget.is_used_up


def test_without_a_budget_there_is_time_for_all() -> None:
    budget = TimeBudget(None, slices=1, groups=1)
    budget.note(planned(1), 1e9)
    assert budget.has_time_for(planned(10**9))


def test_a_fixed_time_and_a_time_for_each_row_are_learned() -> None:
    budget = TimeBudget(1, slices=1, groups=1)
    for rows in (10, 30, 50):
        budget.note(planned(rows), 5 + 0.1 * rows)
    assert budget.estimate(planned(200)) == pytest.approx(25)


@pytest.mark.parametrize("times", [(9.0, 1.0), (0.0, 8.0)], ids=["longer for fewer rows", "nothing for few rows"])
def test_an_estimate_is_never_negative(times: tuple[float, float]) -> None:
    budget = TimeBudget(1, slices=1, groups=1)
    for rows, seconds in zip((10, 50), times, strict=True):
        budget.note(planned(rows), seconds)
    assert all(budget.estimate(planned(rows)) >= 0 for rows in (0, 1, 1000))


def test_a_deeper_stage_takes_longer_for_as_many_rows() -> None:
    budget = TimeBudget(1, slices=4, groups=4)
    budget.note(planned(100), 10)
    deep = PlannedUnit(UnitId(0, (0, 1, 2, 3)), "key", 100, stale=False)
    assert budget.estimate(deep) == pytest.approx(16)


@pytest.mark.parametrize(
    "given", [0, -1, float("nan"), float("inf"), True, "an hour", "1:2", {"weeks": "x"}, timedelta(0)]
)
def test_what_is_no_duration_is_refused(given: object) -> None:
    with pytest.raises(ConfigurationError, match="`time_budget` to be a positive number of seconds"):
        seconds_of(given)
