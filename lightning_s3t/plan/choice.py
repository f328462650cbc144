"""The choice of orders: what was asked for, and what a store that was trained on fewer of them gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_s3t.plan.sequences import Budget, plan_sequences
from lightning_s3t.plan.units import SliceSequence

if TYPE_CHECKING:
    from lightning_s3t.plan.prior import Prior


@dataclass(frozen=True)
class SequenceChoice:
    """What was asked for; `plan_sequences` says what each part means.

    Attributes:
        sequences: A planner's name, or the orders themselves.
        slices: Number of slices, L.
        budget: Number of orders, or their cost.
        seed: For planners that draw.
        prior: Probability that a request is for each slice.
        data: How a cost is counted.
        epochs: How a cost is counted.

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
    data: Literal["cumulative", "disjoint"] = "cumulative"
    epochs: Literal["full", "sisa"] = "full"

    def plan(self, keep: Iterable[Iterable[int]] = ()) -> tuple[SliceSequence, ...]:
        """Returns the orders.

        Args:
            keep: Orders that are trained already.

        Raises:
            ConfigurationError: As `plan_sequences`.
        """
        return plan_sequences(
            self.sequences, self.slices, self.budget, self.seed, self.prior, keep, self.data, self.epochs
        )

    @property
    def planner(self) -> dict[str, Any] | None:
        """What has to be the same for orders to be kept, JSON-ready; None if the orders were given by hand."""
        if not isinstance(self.sequences, str):
            return None
        if self.prior is None:
            return {"sequences": self.sequences, "prior": None}
        from lightning_s3t.plan.prior import check_prior

        return {"sequences": self.sequences, "prior": check_prior(self.prior, self.slices).tolist()}
