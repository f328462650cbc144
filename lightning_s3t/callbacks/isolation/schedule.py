"""Which unit may be trained next: one whose parent is there."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_s3t.callbacks.unit_plan import PlannedUnit
from lightning_s3t.plan import UnitId


class Schedule:
    """Gives units out in the plan's order, each when its parent has been trained.

    Args:
        build: The units to build, in the plan's order.

    Example:
        >>> first, second = (PlannedUnit(UnitId(0, prefix), "key", 1, False) for prefix in [(0,), (0, 1)])
        >>> schedule = Schedule([first, second])
        >>> schedule.width, schedule.take() is first, schedule.take()
        (1, True, None)
        >>> schedule.end(first.unit)
        >>> schedule.take() is second
        True
    """

    def __init__(self, build: Iterable[PlannedUnit]) -> None:
        self._waiting = {planned.unit: planned for planned in build}
        self._running: set[UnitId] = set()

    @property
    def width(self) -> int:
        """How many units can be trained at the same time at most: as many as nothing is built on."""
        parents = {unit.parent for unit in self._waiting}
        return sum(unit not in parents for unit in self._waiting)

    @property
    def done(self) -> bool:
        """Whether no unit waits or runs."""
        return not self._waiting and not self._running

    def take(self) -> PlannedUnit | None:
        """Returns the next unit to train; None while all that are left wait for their parents."""
        for unit, planned in self._waiting.items():
            if unit.parent not in self._waiting and unit.parent not in self._running:
                del self._waiting[unit]
                self._running.add(unit)
                return planned
        return None

    def end(self, unit: UnitId) -> None:
        """Notes that a unit has been trained.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)

    def give_up(self, unit: UnitId) -> None:
        """Notes that a unit was revoked: what is built on it is not trained either.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)
        self._waiting = {other: planned for other, planned in self._waiting.items() if unit not in other.lineage}

    def halt(self) -> None:
        """Gives nothing more out."""
        self._waiting.clear()
