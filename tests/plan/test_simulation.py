"""The simulator, against the theory and against naive play."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import cyclic, expected_lifetime, optimal, plan_sequences, simulate
from lightning_s3t.plan.theory.simulation import BLOCK

Sequences = tuple[tuple[int, ...], ...]


def served(sequences: Sequences, asked: set[int]) -> int:
    """Length of the best prefix that holds none of `asked`."""
    return max(
        next((n for n, slice_ in enumerate(sequence) if slice_ in asked), len(sequence)) for sequence in sequences
    )


def play(
    shards: int,
    sequences: Sequences,
    ask: Callable[[random.Random, list[set[int]]], tuple[int, int] | None],
    looks: list[int],
) -> tuple[float, list[float]]:
    """Play one history, request by request; return its lifetime and the mean length at each look."""
    draw, asked = random.Random(play.seed), [set[int]() for _ in range(shards)]  # type: ignore[attr-defined]
    play.seed += 1  # type: ignore[attr-defined]
    lengths, number = {0: float(len(sequences[0]))}, 0
    lifetime = math.inf
    while number < max(looks) or lifetime == math.inf:
        place = ask(draw, asked)
        if place is None:
            break
        number += 1
        asked[place[0]].add(place[1])
        lengths[number] = sum(served(sequences, one) for one in asked) / shards
        if lengths[number] == 0 and lifetime == math.inf:
            lifetime = number
    return lifetime, [lengths.get(look, lengths[max(lengths)]) for look in looks]


def played(trials: int, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    play.seed = 0  # type: ignore[attr-defined]
    histories = [play(*arguments) for _ in range(trials)]
    return np.array([lifetime for lifetime, _ in histories]), np.array([lengths for _, lengths in histories])


def agree(found: Any, naive: np.ndarray) -> bool:
    error = math.hypot(found.standard_error, naive.std() / math.sqrt(len(naive)))
    return bool(abs(found.mean - naive.mean()) <= 4 * error + 1e-12)


@pytest.mark.parametrize("prior", [None, "skewed"])
@pytest.mark.parametrize(
    ("shards", "slices", "budget"),
    [(1, 2, 1), (1, 3, 6), (3, 4, 1), (5, 6, 1), (5, 6, 3), (5, 6, 6), (10, 4, 4), (2, 8, 12)],
)
def test_simulated_deletion_rates_are_those_of_the_theory(
    shards: int, slices: int, budget: int, prior: str | None
) -> None:
    numbers = np.arange(1, slices + 1) / (slices * (slices + 1) / 2) if prior else None
    sequences = plan_sequences("optimal", slices, budget, prior=numbers)
    lifetime = simulate(shards, sequences, [], trials=20_000, prior=numbers).lifetime
    assert abs(lifetime.mean - expected_lifetime(shards, sequences, numbers)) < 3 * lifetime.standard_error


def test_requests_by_slice_are_those_of_naive_play() -> None:
    sequences, prior = optimal(3, 2), [0.5, 0.3, 0.2]

    def ask(draw: random.Random, asked: list[set[int]]) -> tuple[int, int]:
        return draw.randrange(2), draw.choices(range(3), prior)[0]

    lifetimes, lengths = played(3000, 2, sequences, ask, [1, 4])
    found = simulate(2, sequences, [1, 4], 20_000, prior)
    assert agree(found.lifetime, lifetimes)
    assert all(agree(moment.length, lengths[:, number]) for number, moment in enumerate(found.moments))


@pytest.mark.parametrize("requester", ["subject", "sample"])
def test_everybody_asks_once_as_in_naive_play(requester: Any) -> None:
    sequences, sizes = cyclic(3, 2), [[4, 1, 2], [3, 3, 1]]
    everyone = [(m, s) for m, s in itertools.product(range(2), range(3)) for _ in range(sizes[m][s])]
    queues: list[list[tuple[int, int]]] = []

    def ask(draw: random.Random, asked: list[set[int]]) -> tuple[int, int] | None:
        if not any(asked):
            queues[:] = [draw.sample(everyone, len(everyone))]
        return queues[0].pop() if queues[0] else None

    lifetimes, lengths = played(4000, 2, sequences, ask, [1, 5])
    found = simulate(2, sequences, [1, 5], 20_000, requester=requester, sizes=sizes)
    assert agree(found.lifetime, lifetimes)
    assert all(agree(moment.length, lengths[:, number]) for number, moment in enumerate(found.moments))


def test_places_without_subjects_are_never_asked_for() -> None:
    found = simulate(1, [(0, 1), (1, 0)], [10], 100, requester="subject", sizes=[[3, 0]])
    assert found.lifetime.mean == math.inf
    assert found.moments[0].length.mean == 1.0


@pytest.mark.parametrize("planner", ["optimal", "cyclic", "random"])
@pytest.mark.parametrize("shards", [1, 2])
def test_the_adaptive_requester_takes_what_shortens_most(planner: str, shards: int) -> None:
    sequences = plan_sequences(planner, 4, 3)

    def lefts(asked: list[set[int]]) -> tuple[int, int]:
        alone = [served((sequence,), one) for one in asked for sequence in sequences]
        return sum(served(sequences, one) for one in asked), sum(alone)

    def ask(draw: random.Random, asked: list[set[int]]) -> tuple[int, int] | None:
        places = list(itertools.product(range(shards), range(4)))
        draw.shuffle(places)
        before = lefts(asked)
        after = {
            place: lefts([one | {place[1]} if m == place[0] else one for m, one in enumerate(asked)])
            for place in places
        }
        hurts = [place for place in places if after[place] != before and served(sequences, asked[place[0]])]
        return min(hurts, key=after.__getitem__) if hurts else None

    lifetimes, lengths = played(300, shards, sequences, ask, [1, 2, 3])
    found = simulate(shards, sequences, [1, 2, 3], 2000, requester="adaptive")
    assert agree(found.lifetime, lifetimes)
    assert all(agree(moment.length, lengths[:, number]) for number, moment in enumerate(found.moments))


def test_as_many_requests_as_first_slices_end_everything() -> None:
    assert simulate(3, optimal(5, 4), [], 50, requester="adaptive").lifetime.mean == 12.0


def test_blocks_of_trials_are_independent_draws() -> None:
    found = simulate(1, [(0, 1)], [1], BLOCK + 10)
    assert found.trials == BLOCK + 10
    assert found.moments[0].length.mean == pytest.approx(0.5, abs=0.02)


def test_the_same_seed_draws_the_same() -> None:
    assert simulate(2, cyclic(3, 2), [3], 100, seed=4) == simulate(2, cyclic(3, 2), [3], 100, seed=4)
    assert simulate(2, cyclic(3, 2), [3], 100, seed=4) != simulate(2, cyclic(3, 2), [3], 100, seed=5)


def test_what_is_left_never_grows() -> None:
    moments = simulate(3, optimal(4, 3), range(40), 2000).moments
    for name in ("length", "shards", "data"):
        means = [getattr(moment, name).mean for moment in moments]
        assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 1}, "trials"),
        ({"trials": True}, "trials"),
        ({"requests": [-1]}, "numbers of requests"),
        ({"requests": [1.5]}, "numbers of requests"),
        ({"requester": "somebody"}, "requester"),
        ({"requester": "subject"}, "sizes are missing"),
        ({"sizes": 3}, "sizes are given"),
        ({"requester": "subject", "sizes": [1, 2]}, "shape"),
        ({"requester": "subject", "sizes": -1}, "non-negative"),
        ({"requester": "subject", "sizes": 0}, "not all 0"),
        ({"requester": "adaptive", "prior": [0.5, 0.5]}, "Leave the prior out"),
        ({"prior": [0.5, 0.6]}, "sums to"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        simulate(2, [(0, 1)], **arguments)


def test_too_many_slices_for_the_adaptive_requester_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 20"):
        simulate(1, cyclic(21, 2), [1], 10, requester="adaptive")
