"""The time limit of a fit: a unit is not started if it would not finish in time, and no unit is interrupted."""

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
    """Return a duration in seconds.

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
    """Decides whether to start a unit in the remaining time.

    The duration of a unit is estimated from those that this fit has trained: a fixed time per unit, and a time per row,
    for the share of the network in the stage's backward pass. The first unit is always started, so that every fit makes
    progress.

    Args:
        seconds: The time limit, from now on; None for no limit.
        slices: Number of slices.
        groups: Number of layer groups.

    Attributes:
        seconds: The time limit.
        is_used_up: Whether a unit was not started for lack of time.
    """

    def __init__(self, seconds: float | None, slices: int, groups: int | None) -> None:
        self.seconds = seconds
        self.is_used_up = False
        self._end = time.monotonic() + seconds if seconds is not None else math.inf
        self._per_row = compute_per_sample(slices, groups)
        self._costs: list[float] = []
        self._times: list[float] = []

    def note(self, planned: PlannedUnit, seconds: float) -> None:
        """Record the duration of a unit.

        Args:
            planned: The unit.
            seconds: From its beginning until it was in the store.
        """
        self._costs.append(self.cost(planned))
        self._times.append(seconds)

    def has_time_for(self, planned: PlannedUnit) -> bool:
        """Return whether to start a unit.

        Args:
            planned: The unit.
        """
        fits = not self._times or time.monotonic() + self.estimate(planned) <= self._end
        self.is_used_up = self.is_used_up or not fits
        return fits

    def estimate(self, planned: PlannedUnit) -> float:
        """Return the estimated seconds for a unit, from the units trained so far; 0 before the first.

        Args:
            planned: The unit.
        """
        if not self._times:
            return 0.0
        costs, times = np.array(self._costs), np.array(self._times)
        apart = costs - costs.mean()
        spread = float((apart**2).sum())
        # least squares, with a non-negative fixed time and time per row
        rate = float((apart * times).sum()) / spread if spread > 0 else float(times.mean() / max(costs.mean(), 1.0))
        rate = min(max(rate, 0.0), float(times.mean() / max(costs.mean(), 1.0)))
        fixed = float(times.mean()) - rate * float(costs.mean())
        return fixed + rate * self.cost(planned)

    def cost(self, planned: PlannedUnit) -> float:
        """Return the time of a unit without its fixed part, relative to that of others.

        Args:
            planned: The unit.
        """
        return planned.rows * float(self._per_row[planned.unit.stage - 1])


def _message(duration: object) -> str:
    return (
        f"Expected argument `time_budget` to be a positive number of seconds, 'DD:HH:MM:SS' or a timedelta but got "
        f"{duration!r}."
    )
