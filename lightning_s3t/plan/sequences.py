"""Which orders of its slices a shard is trained on: a planner by name, or orders given by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.checks import check_sequences
from lightning_s3t.plan.rotations import all_orders, cyclic, random_orders, sisa
from lightning_s3t.plan.units import SliceSequence

if TYPE_CHECKING:
    from lightning_s3t.plan.prior import Prior


Budget: TypeAlias = "int | Mapping[str, float]"


def plan_sequences(
    sequences: str | Iterable[Iterable[int]],
    slices: int,
    budget: Budget,
    seed: int = 0,
    prior: Prior | None = None,
    keep: Iterable[Iterable[int]] = (),
    data: Literal["cumulative", "disjoint"] = "cumulative",
    epochs: Literal["full", "sisa"] = "full",
) -> tuple[SliceSequence, ...]:
    """Returns the orders that a budget pays for.

    Args:
        sequences: The name of a planner ("optimal", "cyclic", "bms", "conditional", "random", "all", "sisa"), or the
            orders themselves.
        slices: Number of slices, L.
        budget: Number of orders, B; or what they may cost each shard: {"units": 40} or, in multiples of one full
            fine-tune, {"fine_tunes": 3.5}.
        seed: For the planners that draw.
        prior: Probability that a request is for each slice; None for equal ones. Only for "bms", "conditional" and
            "optimal".
        keep: Orders that the planner gave for a smaller budget, and that are trained: they come first.
        data: How a cost is counted, as in `cost_of`.
        epochs: How a cost is counted, as in `cost_of`.

    Raises:
        ConfigurationError: The planner is unknown or takes no prior, the budget is above what exists, the prior is
            off, or an order is no permutation.

    Example:
        >>> plan_sequences("cyclic", slices=3, budget=2)
        ((0, 1, 2), (1, 2, 0))
        >>> plan_sequences("optimal", slices=3, budget=2, prior=[0.8, 0.1, 0.1])
        ((1, 2, 0), (2, 0, 1))
        >>> plan_sequences("cyclic", slices=3, budget={"units": 6})
        ((0, 1, 2), (1, 2, 0))
    """
    kept = [tuple(order) for order in keep]
    if not isinstance(sequences, str):
        orders = [tuple(order) for order in sequences]
        return check_sequences(orders, slices, budget if isinstance(budget, int) else len(orders))
    if sequences not in (*PLANNERS, *PRIOR_PLANNERS):
        raise ConfigurationError(
            f"There is no planner {sequences!r}. Expected `sequences` to be one of "
            f"{', '.join([*PLANNERS, *PRIOR_PLANNERS])}, or the orders themselves."
        )
    if sequences in PLANNERS and prior is not None:
        raise ConfigurationError(
            f"A prior was given, and the planner {sequences!r} takes none. Choose one of "
            f"{', '.join(PRIOR_PLANNERS)}, or leave the prior out."
        )

    def plan(budget: int) -> tuple[SliceSequence, ...]:
        if sequences == "optimal":
            from lightning_s3t.plan.search import optimal

            return optimal(slices, budget, seed, prior, keep=kept)
        if sequences in PRIOR_PLANNERS:
            orders = PRIOR_PLANNERS[sequences](slices, budget, seed, prior)
        else:
            orders = PLANNERS[sequences](slices, budget, seed)
        return tuple(dict.fromkeys([*kept[:budget], *orders]))[:budget]

    if not isinstance(budget, Mapping):
        return plan(budget)
    limit = _check_limit(budget)
    if sequences in ("all", "sisa"):
        raise ConfigurationError(
            f"The planner {sequences!r} has one number of orders and no choice, so a cost is no budget for it. Give "
            f"the number: budget={1 if sequences == 'sisa' else math.factorial(slices)}."
        )
    from lightning_s3t.plan.cost import as_many_as, optimal_within

    if sequences == "optimal":
        return optimal_within(slices, **limit, data=data, epochs=epochs, seed=seed, prior=prior, keep=kept)
    return as_many_as(plan, slices, **limit, data=data, epochs=epochs)


def _check_limit(budget: Mapping[str, float]) -> dict[str, Any]:
    if len(budget) != 1 or not {"units", "fine_tunes"}.issuperset(budget):
        raise ConfigurationError(
            f"The budget is {dict(budget)}. Expected a number of orders, {{'units': n}}, or {{'fine_tunes': x}}: what "
            "training them may cost each shard."
        )
    return dict(budget)


# NumPy and SciPy are imported when a planner that needs them is called, so that the plan itself stays cheap to import


def _bms(slices: int, budget: int, seed: int, prior: Prior | None) -> tuple[SliceSequence, ...]:
    from lightning_s3t.plan.matching import bms

    return bms(slices, budget, prior=prior)


def _conditional(slices: int, budget: int, seed: int, prior: Prior | None) -> tuple[SliceSequence, ...]:
    from lightning_s3t.plan.sampling import conditional

    return conditional(slices, budget, seed, prior)


def _optimal(slices: int, budget: int, seed: int, prior: Prior | None) -> tuple[SliceSequence, ...]:
    from lightning_s3t.plan.search import optimal

    return optimal(slices, budget, seed, prior)


PLANNERS: dict[str, Callable[[int, int, int], tuple[SliceSequence, ...]]] = {
    "cyclic": cyclic,
    "random": random_orders,
    "all": all_orders,
    "sisa": sisa,
}
PRIOR_PLANNERS: dict[str, Callable[[int, int, int, Prior | None], tuple[SliceSequence, ...]]] = {
    "bms": _bms,
    "conditional": _conditional,
    "optimal": _optimal,
}
