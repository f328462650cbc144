"""Units and their survival."""

from __future__ import annotations

import math
import random
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Place, UnitId, cyclic, deletion_rate, survivors, units_of

UNITS = st.builds(UnitId, st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, unique=True).map(tuple))
ORDERS = st.integers(1, 4).flatmap(
    lambda slices: st.lists(st.permutations(range(slices)).map(tuple), min_size=1, max_size=6, unique=True)
)


@given(UNITS)
def test_a_unit_reads_back_as_it_was_written(unit: UnitId) -> None:
    assert UnitId.parse(str(unit)) == unit


@given(UNITS)
def test_a_lineage_goes_from_the_first_stage_to_the_unit(unit: UnitId) -> None:
    assert [ancestor.stage for ancestor in unit.lineage] == list(range(1, unit.stage + 1))
    assert unit.lineage[-1] == unit
    assert unit.parent == (unit.lineage[-2] if unit.stage > 1 else None)


@given(UNITS, st.integers(0, 9), st.integers(0, 9))
def test_data_reaches_the_units_of_its_shard_that_have_its_slice(unit: UnitId, shard: int, slice_: int) -> None:
    assert unit.reached_by(Place(shard, slice_)) == (shard == unit.shard and slice_ in unit.prefix)


@given(ORDERS, st.integers(1, 3))
def test_every_prefix_is_one_unit_and_parents_come_first(sequences: list[tuple[int, ...]], shards: int) -> None:
    units = units_of(shards, sequences)
    prefixes = {sequence[:stage] for sequence in sequences for stage in range(1, len(sequence) + 1)}
    assert len(units) == len(set(units)) == shards * len(prefixes)
    seen: set[UnitId] = set()
    for unit in units:
        assert unit.parent is None or unit.parent in seen
        seen.add(unit)


def test_every_shard_can_serve_after_the_first_order() -> None:
    units = units_of(2, [(0, 1), (1, 0)])
    assert {unit.shard for unit in units[:4]} == {0, 1}
    assert {unit.stage for unit in units[:4]} == {1, 2}


def test_cumulative_stages_train_on_the_prefix_and_disjoint_ones_on_its_last_slice() -> None:
    assert UnitId(0, (2, 0)).trained_slices("cumulative") == (2, 0)
    assert UnitId(0, (2, 0)).trained_slices("disjoint") == (0,)


@pytest.mark.parametrize("text", ["0", "0/", "a/1", "0/1-1", "-1/0", "0/1/2"])
def test_what_is_no_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        UnitId.parse(text)


def test_the_longest_survivor_serves_then_the_better_one_then_the_first() -> None:
    short, first, second = UnitId(0, (0,)), UnitId(0, (0, 1)), UnitId(0, (1, 0))
    assert survivors([short, second, first]) == {0: first}
    assert survivors([short, second, first], {first: 0.1, second: 0.2, short: 9.0}) == {0: second}
    assert survivors([second, first], {second: -1.0}) == {0: second}


@pytest.mark.parametrize(("first", "rate"), [(1, 68.5), (2, 87.9), (3, 99.5), (4, 107.9), (5, 114.5), (6, 119.85)])
def test_the_papers_deletion_rates(first: int, rate: float) -> None:
    assert deletion_rate(5, 6, first) == pytest.approx(rate, abs=0.06)


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_deletion_rate_agrees_with_a_simulation(budget: int) -> None:
    shards, slices, generator = 2, 3, random.Random(budget)
    units = units_of(shards, cyclic(slices, budget))

    def requests() -> int:
        alive, count = list(units), 0
        while alive:
            place = Place(generator.randrange(shards), generator.randrange(slices))
            alive = [unit for unit in alive if not unit.reached_by(place)]
            count += 1
        return count

    counts = [requests() for _ in range(3000)]
    error = stdev(counts) / math.sqrt(len(counts))
    assert abs(mean(counts) - deletion_rate(shards, slices, budget)) < 3 * error


def test_more_first_slices_than_slices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="from 1 to the number of slices, 3, but got 4"):
        deletion_rate(2, 3, 4)
