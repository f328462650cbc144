"""The sequences of slices that a shard is trained on: from a planner, or given explicitly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family, check_budget, check_sequences
from lightning_s3t.plan.planners.rotations import all_sequences, cyclic, random_sequences, sisa
from lightning_s3t.plan.stage_rules import DataMode, EpochRule

if TYPE_CHECKING:
    from lightning_s3t.plan.problem import PlanProblem, Prior


Budget: TypeAlias = "int | Mapping[str, float]"
PlannerName: TypeAlias = Literal["cyclic", "random", "all", "sisa", "bms", "conditional", "optimal"]

PLANNERS: tuple[str, ...] = get_args(PlannerName)
PRIOR_PLANNERS = ("bms", "conditional", "optimal")


def plan_sequences(
    sequences: str | Iterable[Iterable[int]],
    slices: int,
    budget: Budget,
    seed: int = 0,
    prior: Prior | None = None,
    keep: Iterable[Iterable[int]] = (),
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
) -> Family:
    """Returns the sequences that a budget pays for.

    Args:
        sequences: The name of a planner ("optimal", "cyclic", "bms", "conditional", "random", "all", "sisa"), or the
            sequences themselves.
        slices: Number of slices, L.
        budget: Number of sequences, B; or a limit on their cost per shard: {"units": 40} or, in multiples of one full
            fine-tune, {"fine_tunes": 3.5}.
        seed: For the planners that draw.
        prior: Probability of a request for each slice; None for equal probabilities. Only for "bms", "conditional" and
            "optimal".
        keep: Sequences that the planner gave for a smaller budget, and that are trained: they come first.
        data: How the cost is counted, as in `cost_of`.
        epochs: How the cost is counted, as in `cost_of`.

    Raises:
        ConfigurationError: The planner is unknown or does not use a prior, the budget exceeds the number of sequences,
            the prior is invalid, or a sequence is not a permutation.

    Example:
        >>> plan_sequences("cyclic", slices=3, budget=2)
        ((0, 1, 2), (1, 2, 0))
        >>> plan_sequences("optimal", slices=3, budget=2, prior=[0.8, 0.1, 0.1])
        ((1, 2, 0), (2, 0, 1))
        >>> plan_sequences("cyclic", slices=3, budget={"units": 6})
        ((0, 1, 2), (1, 2, 0))
    """
    if not isinstance(sequences, str):
        family = [tuple(sequence) for sequence in sequences]
        return check_sequences(family, slices, budget if isinstance(budget, int) else len(family))
    if sequences not in PLANNERS:
        raise ConfigurationError(
            f"There is no planner {sequences!r}. Expected `sequences` to be one of "
            f"{', '.join(PLANNERS)}, or the sequences themselves."
        )
    if sequences not in PRIOR_PLANNERS and prior is not None:
        raise ConfigurationError(
            f"A prior was given, but the planner {sequences!r} does not use one. Choose one of "
            f"{', '.join(PRIOR_PLANNERS)}, or leave the prior out."
        )
    from lightning_s3t.plan.problem import PlanProblem

    return plan_family(sequences, PlanProblem.of(slices, prior), budget, seed, keep, data, epochs)


def plan_family(
    planner: str,
    problem: PlanProblem,
    budget: Budget,
    seed: int = 0,
    keep: Iterable[Iterable[int]] = (),
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
) -> Family:
    """Returns the sequences of a planner, as `plan_sequences`.

    Args:
        planner: Its name.
        problem: The slices, and how likely requests are; planners without a prior use only the slices.
        budget: Number of sequences, or a limit on their cost.
        seed: For the planners that draw.
        keep: Sequences that are trained already.
        data: How the cost is counted.
        epochs: How the cost is counted.

    Raises:
        ConfigurationError: The budget exceeds the number of sequences, or is too small for one sequence.
    """
    kept = tuple(tuple(sequence) for sequence in keep)
    if not isinstance(budget, Mapping):
        return _plan(planner, problem, budget, seed, kept)
    limit = _check_limit(budget)
    if planner in ("all", "sisa"):
        raise ConfigurationError(
            f"The planner {planner!r} has a fixed number of sequences, so its budget cannot be a cost. Give the "
            f"number: budget={1 if planner == 'sisa' else math.factorial(problem.slices)}."
        )
    from lightning_s3t.plan.cost import Limit
    from lightning_s3t.plan.planners.within_cost import as_many_as, search_within

    most = Limit.of(problem.slices, **limit, data=data, epochs=epochs)
    if planner == "optimal":
        return search_within(problem, most, seed, kept)
    return as_many_as(lambda budget: _plan(planner, problem, budget, seed, kept), most)


def _plan(planner: str, problem: PlanProblem, budget: int, seed: int, kept: Family) -> Family:
    slices = problem.slices
    if planner in PRIOR_PLANNERS:
        check_budget(slices, budget, math.factorial(slices), planner)
    if planner == "optimal":
        # SciPy takes a while to import: only the planners that need it do
        from lightning_s3t.plan.planners.optimal import search

        return search(problem, budget, seed, kept)
    if planner == "bms":
        from lightning_s3t.plan.planners.matching import match_columns

        sequences = match_columns(problem, budget)
    elif planner == "conditional":
        from lightning_s3t.plan.planners.conditional import draw_conditionally

        sequences = draw_conditionally(problem, budget, seed)
    else:
        rotations = {"cyclic": cyclic, "random": random_sequences, "all": all_sequences, "sisa": sisa}
        sequences = rotations[planner](slices, budget, seed)
    return tuple(dict.fromkeys([*kept[:budget], *sequences]))[:budget]


def _check_limit(budget: Mapping[str, float]) -> dict[str, Any]:
    if len(budget) != 1 or not {"units", "fine_tunes"}.issuperset(budget):
        raise ConfigurationError(
            f"The budget is {dict(budget)}. Expected a number of sequences, {{'units': n}}, or {{'fine_tunes': x}}: "
            "the most that training them may cost each shard."
        )
    return dict(budget)


@dataclass(frozen=True)
class SequenceChoice:
    """The requested sequences; see `plan_sequences` for the fields.

    Attributes:
        sequences: A planner's name, or the sequences themselves.
        slices: Number of slices, L.
        budget: Number of sequences, or their cost.
        seed: For planners that draw.
        prior: Probability of a request for each slice.
        data: How the cost is counted.
        epochs: How the cost is counted.

    Example:
        >>> fewer, more = SequenceChoice("optimal", 4, budget=1), SequenceChoice("optimal", 4, budget=2)
        >>> more.plan(keep=fewer.plan())
        ((0, 1, 2, 3), (2, 3, 1, 0))
    """

    sequences: str | Iterable[Iterable[int]]
    slices: int
    budget: Budget
    seed: int = 0
    prior: Prior | None = None
    data: DataMode = "cumulative"
    epochs: EpochRule = "full"

    def plan(self, keep: Iterable[Iterable[int]] = ()) -> Family:
        """Returns the sequences.

        Args:
            keep: Sequences that are trained already.

        Raises:
            ConfigurationError: As `plan_sequences`.
        """
        return plan_sequences(
            self.sequences, self.slices, self.budget, self.seed, self.prior, keep, self.data, self.epochs
        )

    @property
    def planner(self) -> dict[str, Any] | None:
        """The settings that must be equal for sequences to be kept, JSON-ready; None for explicit sequences."""
        if not isinstance(self.sequences, str):
            return None
        if self.prior is None:
            return {"sequences": self.sequences, "prior": None}
        from lightning_s3t.plan.problem import check_prior

        return {"sequences": self.sequences, "prior": check_prior(self.prior, self.slices).tolist()}
