"""Planners side by side: their cost, how long they last, and what remains on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_s3t.plan.cost import Cost, cost_of_family
from lightning_s3t.plan.families import Family
from lightning_s3t.plan.objective.assessment import Assessment, assess_family
from lightning_s3t.plan.problem import PlanProblem, Prior
from lightning_s3t.plan.sequences import Budget, plan_family
from lightning_s3t.plan.stage_rules import DataMode, EpochRule
from lightning_s3t.plan.theory.endurance import LEVELS, Endurance, endurance_of
from lightning_s3t.plan.theory.expectation import survivors_of
from lightning_s3t.plan.theory.lifetime import lifetime_of
from lightning_s3t.plan.theory.simulation import Moment
from lightning_s3t.plan.worth import DATA, Worth


@dataclass(frozen=True)
class PlannerResult:
    """The result of a planner for a budget.

    Attributes:
        planner: Its name.
        sequences: The sequences.
        cost: The cost of the sequences per shard.
        until: Number of requests until it serves less than each level.
        lifetime: Expected number of requests until nothing is left, in all shards: the deletion rate.
        assessment: The value of the sequences by the objective of `optimal`, and a bound on the value of any sequences.
        moments: What remains after numbers of requests.
    """

    planner: str
    sequences: Family
    cost: Cost
    until: tuple[Endurance, ...]
    lifetime: float
    assessment: Assessment
    moments: tuple[Moment, ...]


def compare(
    shards: int,
    slices: int,
    budget: Budget,
    planners: Iterable[str] = ("optimal", "bms", "cyclic", "sisa"),
    prior: Prior | None = None,
    requests: Iterable[int] = (1, 5, 20, 50),
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
    seed: int = 0,
    groups: int | None = None,
    levels: Iterable[float] = LEVELS,
    worth: Worth = DATA,
) -> tuple[PlannerResult, ...]:
    """Plan the same shards and slices with several planners.

    Args:
        shards: Number of shards, m.
        slices: Number of slices, L.
        budget: Number of sequences, or their cost, as for `plan_sequences`. SISA has one sequence whatever the budget.
        planners: Their names.
        prior: Probability of a request for each slice, or for each shard and slice; None for equal probabilities.
            Planners that do not use it are evaluated under it too.
        requests: The numbers of requests after which to look.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
        seed: For planners that draw.
        groups: As in `cost_of`.
        levels: The least share that should be served, as in `requests_until`.
        worth: The worth of a shard, as in `requests_until`.

    Raises:
        ConfigurationError: A planner is unknown or has fewer sequences than the budget, or the prior, a level or the
            number of groups is invalid.

    Example:
        >>> for found in compare(shards=5, slices=6, budget=3):
        ...     print(f"{found.planner:8}{found.cost.units:3} units {found.until[1].requests.mean:3.0f} requests")
        optimal  18 units  14 requests
        bms      18 units  12 requests
        cyclic   18 units  12 requests
        sisa      6 units   7 requests
    """
    levels = tuple(levels)
    looks = tuple(requests)
    problem = PlanProblem.of(slices, prior, shards=shards)
    found = []
    for planner in dict.fromkeys(planners):
        family = plan_family(planner, problem, 1 if planner == "sisa" else budget, seed, data=data, epochs=epochs)
        found.append(
            PlannerResult(
                planner,
                family,
                cost_of_family(family, data, epochs, groups),
                endurance_of(family, problem, levels, worth, seed=seed),
                lifetime_of(family, problem),
                assess_family(family, problem, seed),
                survivors_of(family, problem, looks, seed=seed),
            )
        )
    return tuple(found)
