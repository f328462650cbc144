"""The order in which a fit's units are given to processes, wherever these run."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.plan import UnitId


class UnitQueue:
    """Gives units out in the plan's order, each when its parent has been trained.

    Args:
        build: The units to build, in the plan's order.

    Example:
        >>> first, second = (PlannedUnit(UnitId(0, prefix), "key", 1, False) for prefix in [(0,), (0, 1)])
        >>> queue = UnitQueue([first, second])
        >>> queue.take() is first, queue.take()
        (True, None)
        >>> queue.end(first.unit)
        >>> queue.take() is second
        True
    """

    def __init__(self, build: Iterable[PlannedUnit]) -> None:
        self._waiting = {planned.unit: planned for planned in build}
        self._running: set[UnitId] = set()
        self._halted = False

    @property
    def waiting(self) -> bool:
        """Whether there are units left to start."""
        return bool(self._waiting)

    @property
    def done(self) -> bool:
        """Whether no unit waits or runs."""
        return not self._waiting and not self._running

    def take(self) -> PlannedUnit | None:
        """Return the next unit to train; None while all remaining units wait for their parents."""
        for unit, planned in self._waiting.items():
            if unit.parent not in self._waiting and unit.parent not in self._running:
                del self._waiting[unit]
                self._running.add(unit)
                return planned
        return None

    def put_back(self, planned: PlannedUnit) -> None:
        """Record that a unit was interrupted, and is the next to train.

        Args:
            planned: The unit.
        """
        self._running.discard(planned.unit)
        if not self._halted:
            self._waiting = {planned.unit: planned, **self._waiting}

    def end(self, unit: UnitId, trained: bool = True) -> None:
        """Record that a unit has ended.

        Args:
            unit: The unit.
            trained: Whether it is in the store; otherwise it is abandoned.
        """
        if trained:
            self._running.discard(unit)
        else:
            self.give_up(unit)

    def give_up(self, unit: UnitId) -> None:
        """Record that a unit was revoked or skipped: units built on it are not trained either.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)
        self._waiting = {other: planned for other, planned in self._waiting.items() if unit not in other.lineage}

    def halt(self) -> None:
        """Start no further units."""
        self._halted = True
        self._waiting.clear()
