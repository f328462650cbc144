"""Which unit is trained when several are at the same time."""

from __future__ import annotations

from lightning_s3t.executors.isolated import Schedule
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.plan import UnitId

PLAN = ["0/0", "0/0-1", "0/0-1-2", "0/1", "1/0", "1/0-1"]


def schedule_of(*names: str) -> Schedule:
    return Schedule(PlannedUnit(UnitId.parse(name), "key", rows=1, stale=False) for name in names)


def take_all(schedule: Schedule) -> list[str]:
    taken = []
    while (planned := schedule.take()) is not None:
        taken.append(str(planned.unit))
    return taken


def test_only_units_whose_parents_are_there_are_given_out_in_the_plans_order() -> None:
    schedule = schedule_of(*PLAN)
    assert take_all(schedule) == ["0/0", "0/1", "1/0"]
    schedule.end(UnitId.parse("1/0"))
    assert take_all(schedule) == ["1/0-1"]
    schedule.end(UnitId.parse("0/0"))
    assert take_all(schedule) == ["0/0-1"]


def test_a_parent_that_the_store_has_is_not_waited_for() -> None:
    assert take_all(schedule_of("0/0-1", "1/0-1")) == ["0/0-1", "1/0-1"]


def test_what_is_built_on_a_revoked_unit_is_given_up() -> None:
    schedule = schedule_of(*PLAN)
    take_all(schedule)
    schedule.give_up(UnitId.parse("0/0"))
    for name in ("0/1", "1/0"):
        schedule.end(UnitId.parse(name))
    assert take_all(schedule) == ["1/0-1"]
    assert not schedule.done
    schedule.end(UnitId.parse("1/0-1"))
    assert schedule.done


def test_after_a_halt_only_what_runs_is_waited_for() -> None:
    schedule = schedule_of(*PLAN)
    schedule.take()
    schedule.halt()
    assert schedule.take() is None
    assert not schedule.done
    schedule.end(UnitId.parse("0/0"))
    assert schedule.done
