"""The time that a fit may take: a unit is not begun if it would not end in time, and none is cut."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeAlias

import numpy as np
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.plan.cost import compute_per_sample

Duration: TypeAlias = "float | str | timedelta | Mapping[str, int]"
"""Seconds, or a value that `Trainer(max_time=...)` takes: "DD:HH:MM:SS", a timedelta, or a mapping of its arguments."""


def seconds_of(duration: Duration) -> float:
    """Returns a duration in seconds.

    Args:
        duration: The duration.

    Raises:
        ConfigurationError: It is none, or it is not positive.

    Example:
        >>> seconds_of("00:01:30:00"), seconds_of(timedelta(minutes=2)), seconds_of({"minutes": 2}), seconds_of(90)
        (5400.0, 120.0, 120.0, 90.0)
    """
    try:
        if isinstance(duration, (int, float)) and not isinstance(duration, bool):
            found = float(duration)
        elif isinstance(duration, (str, timedelta, Mapping)):
            given = dict(duration) if isinstance(duration, Mapping) else duration
            found = float(Timer(given).time_remaining() or 0.0)
        else:
            found = math.nan
    except (MisconfigurationException, TypeError, OverflowError) as error:
        raise ConfigurationError(_message(duration)) from error
    if not 0 < found < math.inf:
        raise ConfigurationError(_message(duration))
    return found


class TimeBudget:
    """Says whether a unit is to be begun in the time that is left.

    How long a unit will take is learned from those that this fit has trained: a fixed time each, and a time for each
    row, for the share of the network that the stage's backward pass goes through. The first unit is always begun, so
    that every fit makes progress.

    Args:
        seconds: How long the fit may take, from now on; None for as long as it needs.
        slices: Number of slices.
        groups: Number of layer groups.

    Attributes:
        seconds: How long the fit may take.
        is_used_up: Whether a unit was not begun for want of time.
    """

    def __init__(self, seconds: float | None, slices: int, groups: int | None) -> None:
        self.seconds = seconds
        self.is_used_up = False
        self._end = time.monotonic() + seconds if seconds is not None else math.inf
        self._per_row = compute_per_sample(slices, groups)
        self._costs: list[float] = []
        self._times: list[float] = []

    def note(self, planned: PlannedUnit, seconds: float) -> None:
        """Takes note of how long a unit took.

        Args:
            planned: The unit.
            seconds: From its beginning until it was in the store.
        """
        self._costs.append(self._cost(planned))
        self._times.append(seconds)

    def has_time_for(self, planned: PlannedUnit) -> bool:
        """Says whether a unit is to be begun.

        Args:
            planned: The unit.
        """
        fits = not self._times or time.monotonic() + self.estimate(planned) <= self._end
        self.is_used_up = self.is_used_up or not fits
        return fits

    def estimate(self, planned: PlannedUnit) -> float:
        """Returns how many seconds a unit will take, as far as those tell that were trained; 0 before the first.

        Args:
            planned: The unit.
        """
        if not self._times:
            return 0.0
        costs, times = np.array(self._costs), np.array(self._times)
        apart = costs - costs.mean()
        spread = float((apart**2).sum())
        # least squares; neither a fixed time nor one for each row is negative
        rate = float((apart * times).sum()) / spread if spread > 0 else float(times.mean() / max(costs.mean(), 1.0))
        rate = min(max(rate, 0.0), float(times.mean() / max(costs.mean(), 1.0)))
        fixed = float(times.mean()) - rate * float(costs.mean())
        return fixed + rate * self._cost(planned)

    def _cost(self, planned: PlannedUnit) -> float:
        return planned.rows * float(self._per_row[planned.unit.stage - 1])


def _message(duration: object) -> str:
    return (
        f"Expected argument `time_budget` to be a positive number of seconds, 'DD:HH:MM:SS' or a timedelta but got "
        f"{duration!r}."
    )
