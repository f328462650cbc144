"""Which unit is trained when several are at the same time."""

from __future__ import annotations

from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.executors.unit_queue import UnitQueue
from lightning_s3t.plan import UnitId

PLAN = ["0/0", "0/0-1", "0/0-1-2", "0/1", "1/0", "1/0-1"]


def queue_of(*names: str) -> UnitQueue:
    return UnitQueue(PlannedUnit(UnitId.parse(name), "key", rows=1, stale=False) for name in names)


def take_all(queue: UnitQueue) -> list[str]:
    taken = []
    while (planned := queue.take()) is not None:
        taken.append(str(planned.unit))
    return taken


def test_only_units_whose_parents_are_there_are_given_out_in_the_plans_order() -> None:
    queue = queue_of(*PLAN)
    assert take_all(queue) == ["0/0", "0/1", "1/0"]
    queue.end(UnitId.parse("1/0"))
    assert take_all(queue) == ["1/0-1"]
    queue.end(UnitId.parse("0/0"))
    assert take_all(queue) == ["0/0-1"]


def test_a_parent_that_the_store_has_is_not_waited_for() -> None:
    assert take_all(queue_of("0/0-1", "1/0-1")) == ["0/0-1", "1/0-1"]


def test_what_is_built_on_a_revoked_unit_is_given_up() -> None:
    queue = queue_of(*PLAN)
    take_all(queue)
    queue.give_up(UnitId.parse("0/0"))
    for name in ("0/1", "1/0"):
        queue.end(UnitId.parse(name))
    assert take_all(queue) == ["1/0-1"]
    assert not queue.done
    queue.end(UnitId.parse("1/0-1"))
    assert queue.done


def test_after_a_halt_only_what_runs_is_waited_for() -> None:
    queue = queue_of(*PLAN)
    queue.take()
    queue.halt()
    assert queue.take() is None
    assert not queue.done
    queue.end(UnitId.parse("0/0"))
    assert queue.done


def test_a_unit_that_was_lost_is_the_next() -> None:
    queue = queue_of(*PLAN)
    first = queue.take()
    assert first is not None
    assert str(first.unit) == "0/0"
    queue.put_back(first.unit)
    assert take_all(queue) == ["0/0", "0/1", "1/0"]


def test_after_a_halt_a_unit_that_was_lost_is_left() -> None:
    queue = queue_of(*PLAN)
    first = queue.take()
    assert first is not None
    queue.halt()
    queue.put_back(first.unit)
    assert queue.done


def take_turn(queue: UnitQueue, places: int) -> list[str]:
    """The units that are given out before one has ended."""
    taken = []
    while len(taken) < places and (planned := queue.take(places)) is not None:
        taken.append(str(planned.unit))
    return taken


CHAINED = ["0/0", "1/0", "2/0", "3/0", "3/0-1", "3/0-1-2", "3/0-1-2-3"]


def test_one_at_a_time_units_come_in_the_plans_order() -> None:
    queue = queue_of(*CHAINED)
    taken = []
    while not queue.done:
        taken += take_turn(queue, 1)
        queue.end(UnitId.parse(taken[-1]))
    assert taken == CHAINED


def test_a_chain_that_the_fit_would_wait_for_in_the_end_comes_first() -> None:
    # two places and seven units: the last three would be alone if the chain began after the others
    assert take_turn(queue_of(*CHAINED), 2) == ["3/0", "0/0"]


def test_the_cost_of_units_decides_which_chain_is_long() -> None:
    units = [PlannedUnit(UnitId.parse(name), "key", rows=rows, stale=False) for name, rows in [("0/0", 1), ("1/0", 9)]]
    queue = UnitQueue([*units, PlannedUnit(UnitId.parse("0/0-1"), "key", rows=1, stale=False)], lambda one: one.rows)
    assert take_turn(queue, 2) == ["1/0", "0/0"]
