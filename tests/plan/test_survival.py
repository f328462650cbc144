"""Survival: which unit serves after deletions, and how many requests it takes until none does."""

from __future__ import annotations

import math
import random
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Place, UnitId, deletion_rate, harmonic, plan_sequences, survivors, units_of

UNITS = st.builds(
    UnitId,
    st.integers(0, 2),
    st.permutations(range(3)).flatmap(lambda p: st.sampled_from([tuple(p[:k]) for k in (1, 2, 3)])),
)
ALIVE = st.lists(UNITS, max_size=12, unique=True)
SCORES = st.dictionaries(UNITS, st.sampled_from([-1.0, 0.0, 0.5, 0.9, float("inf"), -float("inf")]))


@given(ALIVE, SCORES)
def test_each_shard_with_a_unit_alive_serves_and_no_other(alive: list[UnitId], score: dict[UnitId, float]) -> None:
    best = survivors(alive, score)
    assert list(best) == sorted({unit.shard for unit in alive})
    assert all(unit in alive and unit.shard == shard for shard, unit in best.items())


@given(ALIVE, SCORES)
def test_the_survivor_is_the_longest_alive_and_the_best_of_these(
    alive: list[UnitId], score: dict[UnitId, float]
) -> None:
    best = survivors(alive, score)
    for unit in alive:
        chosen = best[unit.shard]
        assert unit.stage <= chosen.stage
        if unit.stage == chosen.stage and unit in score:
            assert score[unit] <= score.get(chosen, -math.inf)


@given(ALIVE, SCORES, st.randoms())
def test_the_order_of_the_units_does_not_matter(
    alive: list[UnitId], score: dict[UnitId, float], generator: random.Random
) -> None:
    best = survivors(alive, score)
    generator.shuffle(alive)
    assert survivors(alive, score) == best


def test_a_score_that_is_no_number_counts_as_none() -> None:
    first, second, third = (UnitId(0, (slice_,)) for slice_ in range(3))
    score = {first: math.nan, second: 1.0, third: 0.5}
    for alive in ([first, second, third], [second, third, first], [third, first, second]):
        assert survivors(alive, score) == {0: second}


def test_without_units_nothing_serves() -> None:
    assert survivors([]) == {}


@given(st.integers(0, 200))
def test_harmonic_numbers_are_their_sums(number: int) -> None:
    assert harmonic(number) == pytest.approx(math.fsum(1 / k for k in range(1, number + 1)), abs=1e-12)


@pytest.mark.parametrize(("first", "rate"), list(enumerate([68.5, 87.9, 99.6, 107.9, 114.5, 119.85], start=1)))
def test_the_papers_table_to_a_tenth(first: int, rate: float) -> None:
    assert deletion_rate(shards=5, slices=6, distinct_first=first) == pytest.approx(rate, abs=0.1)


@given(st.integers(1, 8), st.integers(2, 8), st.data())
def test_more_first_slices_survive_longer(shards: int, slices: int, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(1, slices - 1))
    assert deletion_rate(shards, slices, fewer) < deletion_rate(shards, slices, fewer + 1)


def test_with_one_shard_and_one_slice_the_first_request_ends_it() -> None:
    assert deletion_rate(1, 1, 1) == 1


@pytest.mark.parametrize("planner", ["cyclic", "random"])
def test_the_rate_depends_on_the_first_slices_alone_beyond_a_cycle_too(planner: str) -> None:
    shards, slices, budget = 2, 3, 5
    sequences = plan_sequences(planner, slices, budget, seed=4)
    units, generator = units_of(shards, sequences), random.Random(0)

    def requests() -> int:
        alive, count = set(units), 0
        while survivors(alive):
            place = Place(generator.randrange(shards), generator.randrange(slices))
            alive = {unit for unit in alive if not unit.reached_by(place)}
            count += 1
        return count

    counts = [requests() for _ in range(2000)]
    distinct = len({sequence[0] for sequence in sequences})
    error = stdev(counts) / math.sqrt(len(counts))
    assert abs(mean(counts) - deletion_rate(shards, slices, distinct)) < 3 * error


@pytest.mark.parametrize("first", [0, -1, 7])
def test_a_number_of_first_slices_that_cannot_be_is_refused(first: int) -> None:
    with pytest.raises(ConfigurationError, match=f"from 1 to the number of slices, 6, but got {first}"):
        deletion_rate(5, 6, first)
