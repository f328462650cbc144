"""Estimates with their errors."""

from __future__ import annotations

from dataclasses import dataclass

NORMAL_95 = 1.959964  # standard errors to either side that cover 95 % of a normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean, drawn or exact.

    Attributes:
        mean: The estimate.
        standard_error: Of the mean; 0 where it is exact.
    """

    mean: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval."""
        return self.mean - NORMAL_95 * self.standard_error, self.mean + NORMAL_95 * self.standard_error
