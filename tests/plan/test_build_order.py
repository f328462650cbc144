"""The build order: what is trained once, what comes first, and what a larger plan adds."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import DataMode, Place, UnitId, order_by_worth, plan_sequences, survivors, units_of

PLANS = st.integers(1, 5).flatmap(
    lambda slices: st.tuples(
        st.sampled_from(["cyclic", "random"]),
        st.just(slices),
        st.integers(1, min(math.factorial(slices), 40)),
        st.integers(0, 3),
    )
)


@given(PLANS)
def test_orders_with_a_common_beginning_share_their_units(plan: tuple[str, int, int, int]) -> None:
    sequences = plan_sequences(*plan)
    units = units_of(1, sequences)
    assert [unit.prefix for unit in units if unit.stage == len(sequences[0])] == list(sequences)
    for stage in range(1, len(sequences[0]) + 1):
        shared = {sequence[:stage] for sequence in sequences}
        assert {unit.prefix for unit in units if unit.stage == stage} == shared


@given(PLANS, st.integers(1, 3))
def test_units_stand_in_the_order_of_sequence_shard_and_stage(plan: tuple[str, int, int, int], shards: int) -> None:
    sequences = plan_sequences(*plan)

    def first_needed(unit: UnitId) -> tuple[int, int, int]:
        number = next(n for n, sequence in enumerate(sequences) if sequence[: unit.stage] == unit.prefix)
        return number, unit.shard, unit.stage

    units = units_of(shards, sequences)
    assert list(units) == sorted(units, key=first_needed)


@given(PLANS, st.integers(1, 3))
def test_every_shard_serves_its_full_length_once_the_first_sequence_is_trained(
    plan: tuple[str, int, int, int], shards: int
) -> None:
    planner, slices, budget, seed = plan
    units = units_of(shards, plan_sequences(planner, slices, budget, seed))
    best = survivors(units[: shards * slices])
    assert {shard: unit.stage for shard, unit in best.items()} == dict.fromkeys(range(shards), slices)


@given(PLANS)
def test_a_larger_budget_keeps_every_unit_that_is_trained_already(plan: tuple[str, int, int, int]) -> None:
    planner, slices, budget, seed = plan
    sequences = plan_sequences(planner, slices, budget, seed)
    for fewer in range(1, budget):
        assert plan_sequences(planner, slices, fewer, seed) == sequences[:fewer]


@given(st.integers(1, 5), st.data())
def test_one_request_leaves_a_shard_of_a_cycle_something_to_serve(slices: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, slices))
    asked = Place(0, data.draw(st.integers(0, slices - 1)))
    sequences = plan_sequences("cyclic", slices, budget)
    left = [unit for unit in units_of(1, sequences) if not unit.reached_by(asked)]
    assert bool(left) == ({sequence[0] for sequence in sequences} != {asked.slice})


def test_nothing_planned_is_nothing_to_build() -> None:
    assert units_of(3, []) == ()


def test_random_sequences_follow_their_seed_and_nothing_else() -> None:
    random.seed(1)
    first = plan_sequences("random", 6, 20, seed=3)
    random.seed(2)
    state = random.getstate()
    assert plan_sequences("random", 6, 20, seed=3) == first
    assert plan_sequences("random", 6, 20, seed=4) != first
    assert random.getstate() == state


@pytest.mark.parametrize("planner", ["cyclic", "random", "all", "sisa"])
@pytest.mark.parametrize("budget", [0, -1, 721, 1.0, True, None])
def test_a_budget_that_no_planner_can_spend_is_named(planner: str, budget: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"budget is {budget}\b|budget is {budget},"):
        plan_sequences(planner, 6, budget)  # type: ignore[arg-type]


def test_a_budget_may_be_all_sequences_there_are() -> None:
    for planner in ("cyclic", "random", "all"):
        assert len(set(plan_sequences(planner, 5, 120))) == 120


@pytest.mark.parametrize("prefix", [(), (0, 0), (-1,), (1, 2, 1)], ids=["empty", "twice", "negative", "again"])
def test_a_prefix_that_no_sequence_begins_with_is_refused(prefix: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="at least one slice, each once, counted from 0"):
        UnitId(0, prefix)


@given(st.text(alphabet="0123456789/- ", max_size=8))
def test_text_is_read_as_a_unit_or_refused(text: str) -> None:
    try:
        unit = UnitId.parse(text)
    except ConfigurationError:
        assert not re.fullmatch(r"\d+/\d+", text)
    else:
        assert UnitId.parse(str(unit)) == unit


@st.composite
def partly_built(draw: st.DrawFn) -> tuple[list[UnitId], list[UnitId], int]:
    """What is missing and what is there of a plan, after any requests."""
    sequences = plan_sequences(*draw(PLANS))
    units = units_of(draw(st.integers(1, 3)), sequences)
    gone = draw(st.sets(st.sampled_from(sorted({Place(unit.shard, unit.prefix[-1]) for unit in units}))))
    missing = [unit for unit in units if any(unit.reached_by(place) for place in gone)]
    return missing, [unit for unit in units if unit not in missing], len(sequences[0])


@given(partly_built())
def test_by_worth_every_missing_unit_comes_once_and_after_its_parent(
    state: tuple[list[UnitId], list[UnitId], int],
) -> None:
    missing, present, slices = state
    order = order_by_worth(missing, present, slices)
    assert sorted(order) == sorted(missing)
    for number, unit in enumerate(order):
        assert unit.parent is None or unit.parent in present or unit.parent in order[:number]
    assert order == order_by_worth(missing, present, slices)


@given(PLANS, st.integers(1, 4), st.sampled_from(["cumulative", "disjoint"]), st.sampled_from([1, None]))
def test_by_worth_every_shard_serves_something_first_and_all_of_its_length_next(
    plan: tuple[str, int, int, int], shards: int, data: DataMode, groups: int | None
) -> None:
    slices = plan[1]
    order = order_by_worth(units_of(shards, plan_sequences(*plan)), [], slices, data, groups=groups)
    for depth in range(1, slices + 1):
        best = survivors(order[: shards * depth])
        assert {shard: unit.stage for shard, unit in best.items()} == dict.fromkeys(range(shards), depth)


@given(partly_built())
def test_by_worth_a_shard_that_serves_nothing_is_not_kept_waiting(
    state: tuple[list[UnitId], list[UnitId], int],
) -> None:
    missing, present, slices = state
    dark = {unit.shard for unit in missing} - {unit.shard for unit in present}
    first = order_by_worth(missing, present, slices)[: len(dark)]
    assert {unit.shard for unit in first} == dark


def test_by_worth_what_is_nearest_to_a_longer_prefix_is_begun() -> None:
    sequences = [(0, 1, 2), (1, 0, 2)]
    present = [UnitId(0, (1,)), UnitId(0, (1, 0))]
    missing = [unit for unit in units_of(1, sequences) if unit not in present]
    assert [str(unit) for unit in order_by_worth(missing, present, 3)] == ["0/1-0-2", "0/0", "0/0-1", "0/0-1-2"]


def test_by_worth_of_two_that_give_no_depth_the_one_that_lasts_longer_is_begun() -> None:
    # slice 0 takes all that is there: (1,) stands a request for it, (0, 2) does not
    present = list(UnitId(0, (0, 1, 2)).lineage)
    order = order_by_worth([UnitId(0, (0, 2)), UnitId(0, (1,))], present, 3)
    assert order[0] == UnitId(0, (1,))
