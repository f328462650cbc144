"""What sequences cost, and the best ones within a cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import SequenceChoice, assess, cost_of, cyclic, optimal, optimal_within, plan_sequences
from tests.tiers import in_tier


def test_orders_without_a_common_prefix_cost_the_sum() -> None:
    cost = cost_of(cyclic(4, 3))
    assert (cost.units, cost.fine_tunes) == (12, pytest.approx(3 * 2.5))


def test_a_common_prefix_is_paid_for_once() -> None:
    cost = cost_of([(0, 1, 2, 3), (0, 1, 3, 2)])
    assert (cost.units, cost.fine_tunes) == (6, pytest.approx(2.5 + 0.75 + 1.0))


@pytest.mark.parametrize(
    ("data", "epochs", "price"), [("cumulative", "full", 2.5), ("disjoint", "full", 1.0), ("cumulative", "sisa", 1.0)]
)
def test_an_orders_price_by_data_and_epochs(data: Any, epochs: Any, price: float) -> None:
    assert cost_of([(0, 1, 2, 3)], data, epochs).fine_tunes == pytest.approx(price)


def test_the_backward_pass_ends_at_the_stages_group() -> None:
    # four stages of 1/4 to 4/4 of the samples, whose backward passes reach down 1/4 to 4/4 of the network
    expected = sum(stage / 4 * (1 + stage / 4) / 2 for stage in (1, 2, 3, 4))
    assert cost_of([(0, 1, 2, 3)]).compute == pytest.approx(expected)


def test_finer_slices_than_groups_cost_the_same_samples_and_deeper_passes() -> None:
    own_group, shared = cost_of(cyclic(4, 2)), cost_of(cyclic(4, 2), groups=2)
    assert shared.fine_tunes == own_group.fine_tunes
    # stages 1 and 2 go down half of the network, 3 and 4 all of it
    assert shared.compute == pytest.approx(2 * (0.25 * 0.75 + 0.5 * 0.75 + 0.75 + 1.0))


@pytest.mark.parametrize("groups", [0, 5, 1.5, True])
def test_a_number_of_groups_that_cannot_be_is_refused(groups: Any) -> None:
    with pytest.raises(ConfigurationError, match="groups"):
        cost_of([(0, 1, 2, 3)], groups=groups)


@settings(deadline=None, max_examples=in_tier(10, 25))
@given(st.integers(2, 6), st.data())
def test_the_orders_are_paid_for_and_as_good_as_any_planners_within_the_limit(slices: int, data: st.DataObject) -> None:
    units = data.draw(st.integers(slices, 4 * slices))
    found = optimal_within(slices, units=units)
    assert cost_of(found).units <= units
    value = assess(found).value
    for planner in (optimal, cyclic):
        budget = 1
        while budget <= math.factorial(slices) and cost_of(planner(slices, budget)).units <= units:
            assert value >= assess(planner(slices, budget)).value - 1e-9
            budget += 1


def test_parting_late_buys_more_than_orders_apart() -> None:
    apart, within = optimal(6, 2), optimal_within(6, units=12)
    assert cost_of(within).units <= cost_of(apart).units
    assert assess(within).value >= assess(apart).value - 1e-9


def test_a_limit_in_fine_tunes_is_kept() -> None:
    found = optimal_within(5, fine_tunes=8.0)
    assert 3.0 < cost_of(found).fine_tunes <= 8.0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "exactly one"),
        ({"units": 9, "fine_tunes": 3.0}, "exactly one"),
        ({"units": 3}, "costs 4"),
        ({"fine_tunes": 2.4}, r"costs 2\.5"),
        ({"fine_tunes": math.inf}, "finite"),
        ({"fine_tunes": math.nan}, "finite"),
    ],
)
def test_limits_that_are_none_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        optimal_within(4, **limits)


@pytest.mark.parametrize("planner", ["optimal", "cyclic", "random", "bms"])
def test_a_budget_may_be_a_cost_for_every_planner_with_a_choice(planner: str) -> None:
    assert cost_of(plan_sequences(planner, 4, {"units": 9})).units <= 9


@pytest.mark.parametrize("planner", ["all", "sisa"])
def test_planners_without_a_choice_take_no_cost(planner: str) -> None:
    with pytest.raises(ConfigurationError, match="a fixed number"):
        plan_sequences(planner, 3, {"units": 9})


@pytest.mark.parametrize("budget", [{}, {"epochs": 3}, {"units": 9, "fine_tunes": 3}])
def test_a_budget_of_another_kind_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="Expected a number of sequences"):
        plan_sequences("optimal", 3, budget)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["optimal", "cyclic", "random", "bms", "conditional"]), st.integers(2, 5), st.integers(1, 5))
def test_a_larger_budget_keeps_the_orders_that_are_trained(planner: str, slices: int, fewer: int) -> None:
    fewer = min(fewer, math.factorial(slices))
    trained = SequenceChoice(planner, slices, fewer).plan()
    more = SequenceChoice(planner, slices, min(fewer + 2, math.factorial(slices))).plan(keep=trained)
    assert more[:fewer] == trained
    assert len(set(more)) == min(fewer + 2, math.factorial(slices))


@pytest.mark.parametrize("limit", [{"units": 12}, {"fine_tunes": 9.0}])
def test_a_larger_cost_keeps_the_orders_that_are_trained(limit: dict[str, float]) -> None:
    trained = optimal(4, 2)
    more = plan_sequences("optimal", 4, limit, keep=trained)
    assert more[:2] == trained
    assert len(more) > 2


def test_orders_to_keep_must_be_orders() -> None:
    with pytest.raises(ConfigurationError, match="not a permutation of 3 slices"):
        optimal(3, 2, keep=[(0, 1)])


def test_what_is_kept_and_what_is_added_do_better_than_what_is_kept() -> None:
    trained = cyclic(6, 2)
    assert assess(optimal(6, 3, keep=trained)).value > assess(trained).value
