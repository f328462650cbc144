"""Which shards, slices, budget and epoch rule maintain a given quality, and which of these is cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.sequences import plan_sequences
from lightning_s3t.plan.stage_rules import DataMode, EpochRule
from lightning_s3t.plan.upkeep.scenarios import Scenario
from lightning_s3t.plan.upkeep.steady_state import SteadyState, steady_state
from lightning_s3t.plan.worth import DATA, Worth

SHARDS = (5, 10, 20)
SLICES = (4, 8)
BUDGETS = (1, 2, 4)
TRIALS = 20
EPOCHS: tuple[EpochRule, ...] = ("sisa", "full")


def steady_states(
    rows: int,
    scenario: Scenario,
    refits: Iterable[int | None] = (7,),
    years: float = 2,
    shards: Iterable[int] = SHARDS,
    slices: Iterable[int] = SLICES,
    budgets: Iterable[int] = BUDGETS,
    epochs: Iterable[EpochRule] = EPOCHS,
    wanted: float = 0.75,
    worth: Worth = DATA,
    sharding: float = 0.0,
    data: DataMode = "cumulative",
    groups: int | None = None,
    trials: int = TRIALS,
    seed: int = 0,
) -> tuple[SteadyState, ...]:
    """Return how stores of every combination do over the years, the cheapest first.

    Args:
        rows: As in `steady_state`.
        scenario: As in `steady_state`.
        refits: Numbers of days between fits to try; None for no fit after the first.
        years: As in `steady_state`.
        shards: Numbers of shards to try.
        slices: Numbers of slices to try.
        budgets: Budgets to try; those above the L! sequences that L slices have are left out. The planner is
            `optimal`.
        epochs: Epoch rules to try. The effect of a rule on the quality is unknown here.
        wanted: As in `steady_state`.
        worth: As in `steady_state`.
        sharding: As in `steady_state`.
        data: As in `steady_state`.
        groups: Most layer groups that the network has; with fewer slices, each has its own. None for one per slice.
        trials: As in `steady_state`.
        seed: As in `steady_state`.

    Raises:
        ConfigurationError: No budget is left; or as in `steady_state`.

    Example:
        >>> from lightning_s3t.plan import SCENARIOS
        >>> tried = steady_states(50_000, SCENARIOS["typical"], shards=[5, 20], slices=[4], budgets=[1, 4])
        >>> [(found.shards, len(found.sequences), found.epochs) for found in tried[:3]]
        [(20, 1, 'sisa'), (20, 1, 'full'), (5, 1, 'sisa')]
    """
    slices, budgets = list(slices), list(budgets)
    families = {
        (number, budget): plan_sequences("optimal", number, budget, seed)
        for number in slices
        for budget in budgets
        if budget <= math.factorial(max(number, 0))
    }
    if not families:
        raise ConfigurationError(
            f"The numbers of slices are {slices} and the budgets {budgets}. Expected a budget of at most as many "
            "sequences as there are: L! of L slices."
        )
    found = [
        steady_state(
            many,
            family,
            rows,
            scenario,
            days,
            years,
            wanted,
            worth,
            sharding,
            data,
            rule,
            None if groups is None else min(groups, number),
            trials,
            seed,
        )
        for many, ((number, _), family), days, rule in product(shards, families.items(), refits, tuple(epochs))
    ]
    return tuple(sorted(found, key=lambda one: one.compute))


def cheapest(found: Iterable[SteadyState], quality: float) -> SteadyState | None:
    """Return the cheapest store that serves a given quality on 95 of 100 days; None if no choice does.

    The cost is the compute of all fits. More shards need less of it and cost in another coin: all of them answer each
    request, and each has learnt from fewer rows (`sharding`). So compare choices for each number of shards separately
    too.

    Args:
        found: Stores to choose from.
        quality: The quality that should be served.

    Example:
        >>> from lightning_s3t.plan import SCENARIOS
        >>> tried = steady_states(50_000, SCENARIOS["typical"], shards=[5, 20], slices=[4], budgets=[1, 4])
        >>> cheapest(tried, quality=0.9).shards, cheapest(tried, quality=0.999)
        (20, None)
    """
    return min((one for one in found if one.low >= quality), key=lambda one: one.compute, default=None)


def frontier(found: Iterable[SteadyState]) -> tuple[SteadyState, ...]:
    """Return the stores that no cheaper one with as many shards equals: by shards, then the cheapest first.

    A store stays if more of it serves than of all cheaper ones, in the mean of the days and on 95 of 100 days.

    Args:
        found: Stores to choose from.
    """
    best: list[SteadyState] = []
    for one in sorted(found, key=lambda one: (one.shards, one.compute)):
        before = best[-1] if best and best[-1].shards == one.shards else None
        if before is None or (one.quality.mean > before.quality.mean and one.low > before.low):
            best.append(one)
    return tuple(best)
