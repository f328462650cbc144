"""Which orders of its slices a shard is trained on: a planner by name, or orders given by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.checks import check_sequences
from lightning_s3t.plan.rotations import all_orders, cyclic, random_orders, sisa
from lightning_s3t.plan.units import Sequence

if TYPE_CHECKING:
    from lightning_s3t.plan.prior import Prior


def plan_sequences(
    sequences: str | Iterable[Iterable[int]], slices: int, budget: int, seed: int = 0, prior: Prior | None = None
) -> tuple[Sequence, ...]:
    """Returns the orders that a budget pays for.

    Args:
        sequences: The name of a planner ("cyclic", "random", "all", "sisa", "bms", "conditional", "optimal"), or the
            orders themselves.
        slices: Number of slices, L.
        budget: Number of orders, B.
        seed: For the planners that draw.
        prior: Probability that a request is for each slice; None for equal ones. Only for "bms", "conditional" and
            "optimal".

    Raises:
        ConfigurationError: The planner is unknown or takes no prior, the budget is above what exists, the prior is
            off, or an order is no permutation.

    Example:
        >>> plan_sequences("cyclic", slices=3, budget=2)
        ((0, 1, 2), (1, 2, 0))
        >>> plan_sequences("optimal", slices=3, budget=2, prior=[0.8, 0.1, 0.1])
        ((1, 2, 0), (2, 0, 1))
    """
    if not isinstance(sequences, str):
        return check_sequences(sequences, slices, budget)
    if sequences in PLANNERS:
        if prior is not None:
            raise ConfigurationError(
                f"A prior was given, and the planner {sequences!r} takes none. Choose one of "
                f"{', '.join(PRIOR_PLANNERS)}, or leave the prior out."
            )
        return PLANNERS[sequences](slices, budget, seed)
    if sequences in PRIOR_PLANNERS:
        return PRIOR_PLANNERS[sequences](slices, budget, seed, prior)
    raise ConfigurationError(
        f"There is no planner {sequences!r}. Expected `sequences` to be one of "
        f"{', '.join([*PLANNERS, *PRIOR_PLANNERS])}, or the orders themselves."
    )


# NumPy and SciPy are imported when a planner that needs them is called, so that the plan itself stays cheap to import


def _bms(slices: int, budget: int, seed: int, prior: Prior | None) -> tuple[Sequence, ...]:
    from lightning_s3t.plan.matching import bms

    return bms(slices, budget, prior=prior)


def _conditional(slices: int, budget: int, seed: int, prior: Prior | None) -> tuple[Sequence, ...]:
    from lightning_s3t.plan.sampling import conditional

    return conditional(slices, budget, seed, prior)


def _optimal(slices: int, budget: int, seed: int, prior: Prior | None) -> tuple[Sequence, ...]:
    from lightning_s3t.plan.search import optimal

    return optimal(slices, budget, seed, prior)


PLANNERS: dict[str, Callable[[int, int, int], tuple[Sequence, ...]]] = {
    "cyclic": cyclic,
    "random": random_orders,
    "all": all_orders,
    "sisa": sisa,
}
PRIOR_PLANNERS: dict[str, Callable[[int, int, int, Prior | None], tuple[Sequence, ...]]] = {
    "bms": _bms,
    "conditional": _conditional,
    "optimal": _optimal,
}
