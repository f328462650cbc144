"""The planner `optimal`: against the issue's numbers, brute force, and the other planners."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import assess, cyclic, optimal, plan_sequences
from lightning_s3t.plan.objective.bounds import everything_bound, lagrangian_bound, uniform_bound
from lightning_s3t.plan.objective.lattice import Lattice
from lightning_s3t.plan.objective.sampled import SampledLandscape
from tests.plan.priors import PRIORS, halving, uniform, zipf
from tests.tiers import in_tier

Sequences = tuple[tuple[int, ...], ...]
OTHERS = ("cyclic", "bms", "conditional")


def by_enumeration(sequences: Sequences, prior: np.ndarray, horizon: int) -> float:
    """Return the objective, by going through every course that the requests can take."""
    slices, total = len(sequences[0]), 0.0
    for course in itertools.permutations(range(slices), horizon):
        chance, left = 1.0, 1.0
        for slice_ in course:
            chance *= prior[slice_] / left if left > 0 else 0.0
            left -= prior[slice_]
        asked: set[int] = set()
        for slice_ in course:
            asked.add(slice_)
            total += chance * max(
                next((n for n, s in enumerate(sequence) if s in asked), slices) for sequence in sequences
            )
    return total


def plan(name: str, slices: int, budget: int, prior: np.ndarray | None) -> Sequences:
    return plan_sequences(name, slices, budget, prior=None if name == "cyclic" else prior)


@pytest.mark.parametrize(
    ("budget", "horizon", "rotation", "best"), [(3, 1, 4.0, 4.5), (3, 5, 9.57, 10.5), (6, 5, 12.8, 13.1)]
)
def test_the_gains_over_rotation_that_were_asked_for(budget: int, horizon: int, rotation: float, best: float) -> None:
    assert assess(cyclic(6, budget), horizon=horizon).value == pytest.approx(rotation, abs=0.005)
    assert assess(optimal(6, budget, horizon=horizon), horizon=horizon).value == pytest.approx(best, abs=0.005)


@pytest.mark.parametrize("prior", [uniform(4), zipf(4), halving(4), np.array([0.0, 0.2, 0.3, 0.5])])
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_the_objective_is_that_of_enumerating_what_may_come(prior: np.ndarray, horizon: int) -> None:
    for sequences in (cyclic(4, 3), plan_sequences("random", 4, 5)):
        assert assess(sequences, prior, horizon).value == pytest.approx(by_enumeration(sequences, prior, horizon))


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_no_orders_of_three_or_four_slices_are_better(prior: object, budget: int) -> None:
    for slices in (3, 4) if budget < 4 else (3,):
        probabilities = prior(slices)  # type: ignore[operator]
        lattice = Lattice(probabilities, slices - 1)
        profiles = [lattice.profile(sequence) for sequence in itertools.permutations(range(slices))]
        best = max(lattice.value(np.max(chosen, axis=0)) for chosen in itertools.combinations(profiles, budget))
        found = assess(optimal(slices, budget, prior=probabilities), probabilities)
        assert found.value == pytest.approx(best)
        assert found.bound == pytest.approx(best)
        assert found.proven


@settings(deadline=None, max_examples=in_tier(10, 25))
@given(st.integers(2, 7), st.data())
def test_it_is_never_worse_than_another_planner(slices: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, min(2 * slices, math.factorial(slices))))
    weights = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=slices, max_size=slices)))
    prior = weights / weights.sum()
    value = assess(optimal(slices, budget, prior=prior), prior).value
    for other in OTHERS:
        assert value >= assess(plan(other, slices, budget, prior), prior).value - 1e-9


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize(
    ("slices", "budget"),
    [(2, 4), (9, 4), pytest.param(12, 3, marks=pytest.mark.nightly), pytest.param(12, 12, marks=pytest.mark.nightly)],
)
def test_it_is_never_worse_at_the_corners_of_the_grid(slices: int, budget: int, prior: object) -> None:
    probabilities, budget = prior(slices), min(budget, math.factorial(slices))  # type: ignore[operator]
    value = assess(optimal(slices, budget, prior=probabilities), probabilities).value
    for other in OTHERS:
        assert value >= assess(plan(other, slices, budget, probabilities), probabilities).value - 1e-9


@pytest.mark.parametrize("slices", [6, 8, 10])
def test_it_is_clearly_better_than_rotation_below_a_full_round(slices: int) -> None:
    budget = slices // 2
    assert assess(optimal(slices, budget)).value > 1.05 * assess(cyclic(slices, budget)).value


@settings(deadline=None, max_examples=in_tier(10, 30))
@given(st.integers(2, 5), st.lists(st.integers(0, 119), max_size=4), st.randoms())
def test_a_best_reply_adds_more_than_any_other_order(slices: int, numbers: list[int], random: object) -> None:
    every = list(itertools.permutations(range(slices)))
    lattice = Lattice(zipf(slices), slices - 1)
    others = lattice.nothing()
    for number in numbers:
        others = np.maximum(others, lattice.profile(every[number % len(every)]))
    reply = lattice.best_reply(others, random.random).sequence  # type: ignore[attr-defined]
    values = [lattice.value(np.maximum(others, lattice.profile(sequence))) for sequence in every]
    assert lattice.value(np.maximum(others, lattice.profile(reply))) == pytest.approx(max(values))


@settings(deadline=None, max_examples=in_tier(10, 40))
@given(st.integers(2, 8), st.data())
def test_no_orders_are_above_the_bounds(slices: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, min(10, math.factorial(slices))))
    horizon = data.draw(st.integers(1, slices))
    sequences = plan_sequences("random", slices, budget, seed=data.draw(st.integers(0, 99)))
    for prior in (uniform(slices), halving(slices)):
        value = Lattice(prior, horizon).value(np.max([Lattice(prior, horizon).profile(o) for o in sequences], axis=0))
        assert value <= lagrangian_bound(prior, budget, horizon, value) + 1e-9
        assert value <= everything_bound(prior, horizon) + 1e-9
    value = Lattice(uniform(slices), horizon).value(
        np.max([Lattice(uniform(slices), horizon).profile(sequence) for sequence in sequences], axis=0)
    )
    assert value <= uniform_bound(slices, budget, horizon) + 1e-9


def test_all_sequences_reach_the_bound() -> None:
    found = assess(itertools.permutations(range(4)), zipf(4))
    assert found.proven
    assert found.value == pytest.approx(6)


def test_drawn_histories_estimate_the_objective() -> None:
    prior = zipf(6)
    landscape = SampledLandscape(prior, 5, samples=20_000, seed=1)
    profile = np.max([landscape.profile(sequence) for sequence in cyclic(6, 4)], axis=0)
    error = landscape.standard_error(profile)
    assert abs(landscape.value(profile) - assess(cyclic(6, 4), prior).value) < 4 * error
    assert error < 0.05


def test_orders_come_out_by_what_each_adds() -> None:
    prior = zipf(6)
    sequences = optimal(6, 4, prior=prior)
    first = [assess(sequences[:1], prior).value, *(assess([sequence], prior).value for sequence in sequences)]
    assert first[0] == pytest.approx(max(first))


def test_a_large_vision_transformer_is_planned_in_seconds_and_says_its_gap() -> None:
    start = time.process_time()
    sequences = optimal(24, 24)
    found = assess(sequences)
    assert time.process_time() - start < 10
    assert found.standard_error > 0
    assert not found.proven
    assert 0 < found.gap < 0.06
    assert found.value > assess(cyclic(24, 24)).value * 1.08


@pytest.mark.parametrize("prior", [zipf(16), np.array([1.0] + [0.0] * 15)])
def test_many_slices_with_a_prior_are_planned(prior: np.ndarray) -> None:
    sequences = optimal(16, 3, prior=prior)
    value = assess(sequences, prior).value
    assert all(value >= assess(plan(other, 16, 3, prior), prior).value - 0.05 for other in OTHERS)


def test_a_slice_that_alone_is_asked_for_comes_last() -> None:
    assert optimal(4, 1, prior=[0.0, 1.0, 0.0, 0.0])[0][-1] == 1


@pytest.mark.parametrize("horizon", [0, -1, 1.5, True])
def test_a_horizon_without_requests_is_refused(horizon: int) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument `horizon` to be an integer of at least 1"):
        optimal(3, 2, horizon=horizon)


@pytest.mark.parametrize("sequences", [[(0, 0)], [(0, 1), (0, 1)], []])
def test_what_is_no_family_of_orders_is_not_assessed(sequences: list[tuple[int, ...]]) -> None:
    with pytest.raises(ConfigurationError):
        assess(sequences)
