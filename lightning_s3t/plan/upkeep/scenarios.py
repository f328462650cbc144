"""How often people ask for deletion, and how their requests arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError

DAYS_A_YEAR = 365
MONTH = 30


@dataclass(frozen=True)
class Scenario:
    """Requests over time, as a Poisson process with a rate that may vary from day to day.

    Attributes:
        rate: Requests a person and year, in quiet times.
        spike: The rate of the first month, in multiples of `rate`; the excess halves every month.
        gathered: Requests are collected for this many days and carried out together.
        agent_share: The share of requests from one agent, who submits them in bursts.
        bursts: Number of bursts per year that an agent submits, at random times.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Scenario(rate=1e-3).requests_a_year(people=50_000)
        50.0
    """

    rate: float
    spike: float = 1.0
    gathered: int = 1
    agent_share: float = 0.0
    bursts: float = 12.0

    def __post_init__(self) -> None:
        fits = (
            0 <= self.rate < math.inf
            and 1 <= self.spike < math.inf
            and self.gathered >= 1
            and 0 <= self.agent_share <= 1
            and 0 < self.bursts < math.inf
        )
        if not fits:
            raise ConfigurationError(
                f"The scenario {self} is invalid. Expected a rate of at least 0, a spike of at least 1, an integer "
                "number of days of at least 1, a share from 0 to 1, and more than 0 bursts."
            )

    def requests_a_year(self, people: int) -> float:
        """Return how many requests are expected in a quiet year.

        Args:
            people: Number of people who may ask.
        """
        return self.rate * people

    def by_day(self, people: int, days: int, trials: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Draw the expected number of requests on each day; given these numbers, requests are independent.

        Args:
            people: Number of people who may ask; it is assumed that people who leave are replaced.
            days: Number of days.
            trials: Number of histories.
            generator: Generator for the bursts.

        Returns:
            Shape (trials, days).
        """
        each = self.rate * people / DAYS_A_YEAR
        late = np.maximum(np.arange(days) - MONTH, 0) / MONTH
        found = np.tile(each * (1 + (self.spike - 1) * 0.5**late), (trials, 1))
        if self.agent_share > 0:
            size = self.agent_share * self.rate * people / self.bursts
            bursts = generator.poisson(self.bursts / DAYS_A_YEAR, (trials, days))
            found = (1 - self.agent_share) * found + size * bursts
        if self.gathered > 1:
            carried_out = np.zeros_like(found)
            for day in range(self.gathered, days, self.gathered):
                carried_out[:, day] = found[:, day - self.gathered : day].sum(axis=1)
            found = carried_out
        return found


SCENARIOS: dict[str, Scenario] = {
    "quiet": Scenario(1e-4),
    "typical": Scenario(1e-3),
    "consumer": Scenario(2e-2),
    "spike": Scenario(1e-3, spike=20),
    "batch45": Scenario(1e-3, gathered=45),
    "agents": Scenario(1e-3, agent_share=0.15),
}
"""Scenarios by name; the page "Choosing shards, slices and budget" has their sources."""
