"""Years of requests and fits: against play day by day with the units themselves, and what the scenarios are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import (
    SCENARIOS,
    Place,
    Scenario,
    Worth,
    cheapest,
    cost_of,
    cyclic,
    frontier,
    optimal,
    steady_state,
    steady_states,
    survivors,
    units_of,
)

OFTEN = Scenario(rate=0.6)  # of 100 people: a request every six days


class Played:
    """One year day by day: people ask, units are revoked, and every so many days all are there again."""

    def __init__(self, shards: int, sequences: Any, refit_days: int | None, scenario: Scenario, seed: int) -> None:
        draw, slices = np.random.default_rng(seed), len(sequences[0])
        units = units_of(shards, sequences)
        alive, self.quality, self.built = set(units), [], 0.0
        asked = scenario.by_day(100, 360, 1, draw)[0]
        for day in range(360):
            if refit_days is not None and day > 0 and day % refit_days == 0:
                alive, self.built = self._fit(units, alive, slices)
            for _ in range(draw.poisson(asked[day])):
                place = Place(int(draw.integers(shards)), int(draw.integers(slices)))
                alive = {unit for unit in alive if not unit.reached_by(place)}
            self.quality.append(sum(unit.stage for unit in survivors(alive).values()) / (shards * slices))

    def _fit(self, units: Any, alive: Any, slices: int) -> tuple[set[Any], float]:
        # a cumulative stage k sees k/L of its shard's rows, and a shard has 1/m of all
        shards = 1 + max(unit.shard for unit in units)
        new = sum(unit.stage / slices / shards for unit in units if unit not in alive)
        return set(units), self.built + new


@pytest.mark.parametrize("refit_days", [9, 40, None])
@pytest.mark.parametrize("name", ["rate", "batches", "agents"])
def test_it_is_what_play_day_by_day_gives(name: str, refit_days: int | None) -> None:
    changes: dict[str, Any] = {"batches": {"gathered": 15}, "agents": {"agent_share": 0.5, "bursts": 6}}.get(name, {})
    scenario, sequences, shards = Scenario(0.6, **changes), optimal(4, 2), 3
    games = [Played(shards, sequences, refit_days, scenario, seed) for seed in range(100)]
    found = steady_state(shards, sequences, 100, scenario, refit_days, years=360 / 365, wanted=0.7, trials=300, seed=1)
    by_game = np.array([np.mean(game.quality) for game in games])
    error = math.hypot(by_game.std() / 10, found.quality.standard_error)
    assert abs(by_game.mean() - found.quality.mean) < 4 * error
    below = np.array([np.mean(np.array(game.quality) < 0.7 - 1e-9) * 365 for game in games])
    assert abs(below.mean() - found.days_below) < 4 * math.hypot(below.std() / 10, below.std() / math.sqrt(300)) + 1e-9
    assert (np.concatenate([game.quality for game in games]) < found.low - 1e-9).mean() < 0.08
    built = np.array([game.built for game in games])
    if refit_days is not None:
        # the play's last fit comes before the year's end
        fits, whole = len(range(refit_days, 360, refit_days)), 365 / refit_days
        assert abs(built.mean() / fits * whole - found.upkeep.fine_tunes) < 4 * built.std() / 10 / fits * whole
    else:
        assert found.upkeep.fine_tunes == 0


def test_the_first_fit_costs_what_the_sequences_do() -> None:
    found = steady_state(2, cyclic(4, 3), 100, OFTEN, epochs="sisa", groups=2, trials=2)
    assert found.first_fit == cost_of(cyclic(4, 3), epochs="sisa", groups=2)


def test_without_requests_all_of_it_serves_for_nothing() -> None:
    found = steady_state(2, cyclic(4, 3), 100, Scenario(0.0), trials=2)
    assert (found.quality.mean, found.low, found.days_below, found.days_dark) == (1, 1, 0, 0)
    assert found.upkeep.units == 0


def test_where_everything_is_asked_for_every_day_nothing_serves_and_all_is_built_each_time() -> None:
    found = steady_state(2, cyclic(4, 3), 10**9, Scenario(1.0), refit_days=10, trials=2)
    assert found.quality.mean == 0
    assert found.days_dark == 365
    assert found.upkeep.fine_tunes == pytest.approx(36.5 * found.first_fit.fine_tunes)


def test_what_answers_when_no_unit_is_left_serves_on() -> None:
    found = steady_state(2, cyclic(4, 3), 10**9, Scenario(1.0), worth=Worth(empty=0.9), trials=2)
    assert found.quality.mean == pytest.approx(0.9)


def test_each_doubling_of_the_shards_costs_its_share() -> None:
    found = steady_state(8, cyclic(4, 3), 100, Scenario(0.0), sharding=0.1, trials=2)
    assert found.quality.mean == pytest.approx(0.9**3)


def test_the_same_seed_plays_the_same() -> None:
    first, second, other = (steady_state(2, cyclic(3, 2), 100, OFTEN, trials=5, seed=seed) for seed in (4, 4, 5))
    assert first == second
    assert first != other


@pytest.mark.parametrize("name", ["quiet", "typical", "consumer", "agents"])
def test_a_scenarios_rate_is_that_of_its_year(name: str) -> None:
    scenario = SCENARIOS[name]
    drawn = scenario.by_day(1000, 365, 400, np.random.default_rng(0)).sum(axis=1)
    assert abs(drawn.mean() - scenario.requests_a_year(1000)) <= 4 * drawn.std() / 20 + 1e-9


def test_a_spike_lasts_a_month_and_halves_every_month() -> None:
    by_day = SCENARIOS["spike"].by_day(365_000, 365, 1, np.random.default_rng(0))[0]
    assert by_day[[0, 29, 30, 60]].tolist() == pytest.approx([20, 20, 20, 10.5])


def test_gathered_requests_come_together_and_none_is_lost_but_the_last() -> None:
    by_day = SCENARIOS["batch45"].by_day(365_000, 365, 1, np.random.default_rng(0))[0]
    assert np.flatnonzero(by_day).tolist() == list(range(45, 365, 45))
    assert by_day.max() == pytest.approx(45)


def test_the_cheapest_serves_what_is_wanted_and_nothing_that_serves_it_is_cheaper() -> None:
    found = steady_states(100, OFTEN, [7, 28], 1, shards=[2, 4], slices=[3], budgets=[1, 3], trials=10)
    assert [one.compute for one in found] == sorted(one.compute for one in found)
    best = cheapest(found, 0.6)
    assert best is not None
    assert best.low >= 0.6
    assert all(one.compute >= best.compute for one in found if one.low >= 0.6)
    assert cheapest(found, 1.1) is None


def test_on_the_frontier_more_is_served_for_more() -> None:
    found = steady_states(100, OFTEN, [7, 28], 1, shards=[2, 4], slices=[3], budgets=[1, 2, 3], trials=10)
    kept = frontier(found)
    assert {one.shards for one in kept} == {2, 4}
    for cheaper, dearer in pairwise(kept):
        if cheaper.shards == dearer.shards:
            assert (cheaper.compute, cheaper.low) < (dearer.compute, dearer.low)

    for one in set(found) - set(kept):
        cheaper = [other for other in kept if other.shards == one.shards and other.compute <= one.compute]
        assert any(other.low >= one.low or other.quality.mean >= one.quality.mean for other in cheaper)


def test_budgets_above_all_sequences_and_groups_above_the_slices_are_left_out() -> None:
    found = steady_states(100, OFTEN, shards=[2], slices=[2, 4], budgets=[4], epochs=["full"], groups=3, trials=2)
    assert [(one.slices, one.groups) for one in found] == [(4, 3)]


def test_a_budget_of_more_sequences_than_slices_is_tried_and_one_of_more_than_there_are_is_refused() -> None:
    found = steady_states(100, OFTEN, shards=[2], slices=[3], budgets=[4], epochs=["full"], trials=2)
    assert [len(one.sequences) for one in found] == [4]
    with pytest.raises(ConfigurationError, match=r"slices are \[2\] and the budgets \[4\].*L! of L slices"):
        steady_states(100, OFTEN, shards=[2], slices=[2], budgets=[4])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"refit_days": 0},
        {"refit_days": 1.5},
        {"years": 0},
        {"years": math.inf},
        {"sharding": 1.0},
        {"trials": 1},
        {"groups": 4},
    ],
)
def test_years_that_cannot_be_played_are_refused(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"rows": 100, "scenario": OFTEN, **wrong}
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        steady_state(2, cyclic(3, 2), **arguments)


@pytest.mark.parametrize(
    "wrong", [{"rate": -1}, {"rate": math.nan}, {"spike": 0.5}, {"gathered": 0}, {"agent_share": 2}, {"bursts": 0}]
)
def test_a_scenario_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"The scenario .* is invalid"):
        Scenario(**{"rate": 1e-3, **wrong})
