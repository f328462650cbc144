"""The outlook: how much of the data serves after further requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import UnitId, cyclic, simulate, units_of
from lightning_s3t.plan.outlook import outlook


@pytest.mark.parametrize(("shards", "slices", "budget"), [(1, 3, 1), (3, 4, 2), (2, 5, 5)])
def test_of_a_full_store_it_is_what_playing_requests_gives(shards: int, slices: int, budget: int) -> None:
    sequences, requests = cyclic(slices, budget), (1, 3, 8)
    found = outlook(units_of(shards, sequences), [1.0] * shards, slices, requests, trials=20_000)
    played = simulate(shards, sequences, requests, trials=20_000)
    for mean, moment in zip(found.mean, played.moments, strict=True):
        assert mean == pytest.approx(moment.length.mean / slices, abs=0.01)


def test_one_unit_is_lost_by_any_request_for_its_slices() -> None:
    found = outlook([UnitId(0, (0,))], [1.0], slices=4, requests=[0, 1, 2], trials=20_000)
    assert found.mean == pytest.approx([1 / 4, 3 / 16, 9 / 64], abs=0.005)


def test_a_shard_of_few_people_is_asked_for_seldom() -> None:
    units = [UnitId(0, (0,)), UnitId(1, (0,))]
    found = outlook(units, [99.0, 1.0], slices=1, requests=[1], trials=20_000)
    assert found.mean[0] == pytest.approx(0.99 * 0.01 + 0.01 * 0.99, abs=0.003)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31), st.data())
def test_it_falls_from_what_serves_now_to_nothing(shards: int, slices: int, seed: int, data: st.DataObject) -> None:
    family = cyclic(slices, data.draw(st.integers(1, slices)))
    units = data.draw(st.sets(st.sampled_from(units_of(shards, family)))) or {UnitId(0, (family[0][0],))}
    found = outlook(units, [1.0] * shards, slices, [0, 1, 2, 5, 1000], trials=50, seed=seed)
    longest = [max((unit.stage for unit in units if unit.shard == shard), default=0) for shard in range(shards)]
    assert found.mean[0] == pytest.approx(sum(longest) / (shards * slices))
    assert found.low[0] == pytest.approx(found.mean[0])
    assert list(found.mean) == sorted(found.mean, reverse=True)
    assert found.mean[-1] == 0
    # a quantile may lie above the mean: where one history in fifty has nothing left
    assert list(found.low) == sorted(found.low, reverse=True)
    assert found.low[-1] == 0


@pytest.mark.parametrize(("shares", "requests"), [([], [1]), ([0.0], [1]), ([1.0], [-1])])
def test_what_cannot_be_is_refused(shares: list[float], requests: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument"):
        outlook([], shares, slices=2, requests=requests)
