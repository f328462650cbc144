"""The order in which a fit's units are given to processes, wherever these run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.plan import UnitId


class UnitQueue:
    """Gives units out in the plan's order, each when its parent has been trained.

    Only where several units are trained at the same time, and a chain of units would otherwise be what the others have
    to be waited for in the end, the next unit of that chain comes first: when the chain takes as long as all waiting
    units would, divided among the places.

    Args:
        build: The units to build, in the plan's order.
        cost: The relative time that a unit takes; None if all take the same.

    Example:
        >>> first, second = (PlannedUnit(UnitId(0, prefix), "key", 1, False) for prefix in [(0,), (0, 1)])
        >>> queue = UnitQueue([first, second])
        >>> queue.take() is first, queue.take()
        (True, None)
        >>> queue.end(first.unit)
        >>> queue.take() is second
        True
    """

    def __init__(self, build: Iterable[PlannedUnit], cost: Callable[[PlannedUnit], float] | None = None) -> None:
        self._planned = {planned.unit: planned for planned in build}
        self._positions = {unit: number for number, unit in enumerate(self._planned)}
        self._costs = {unit: cost(planned) if cost is not None else 1.0 for unit, planned in self._planned.items()}
        self._children: dict[UnitId, list[UnitId]] = {}
        for unit in self._planned:
            if unit.parent is not None:
                self._children.setdefault(unit.parent, []).append(unit)
        self._chains = self._longest_chains()
        self._waiting = set(self._planned)
        self._running: set[UnitId] = set()
        self._work = sum(self._costs.values())  # of those that wait
        self._halted = False
        self._by_order: list[tuple[int, UnitId]] = []  # those whose parent is there, and some that were taken since
        self._by_chain: list[tuple[float, int, UnitId]] = []
        for unit in self._planned:
            if unit.parent not in self._planned:
                self._release(unit)

    @property
    def waiting(self) -> bool:
        """Whether there are units left to start."""
        return bool(self._waiting)

    @property
    def done(self) -> bool:
        """Whether no unit waits or runs."""
        return not self._waiting and not self._running

    def take(self, places: int = 1) -> PlannedUnit | None:
        """Return the next unit to train; None while all remaining units wait for their parents.

        Args:
            places: Number of units that are trained at the same time.
        """
        while self._by_order and self._by_order[0][-1] not in self._waiting:
            heapq.heappop(self._by_order)
        while self._by_chain and self._by_chain[0][-1] not in self._waiting:
            heapq.heappop(self._by_chain)
        if not self._by_order:
            return None
        unit = self._by_order[0][-1]
        longest, _, urgent = self._by_chain[0]
        if -longest * places >= self._work:
            unit = urgent
        self._remove(unit)
        self._running.add(unit)
        return self._planned[unit]

    def put_back(self, unit: UnitId) -> None:
        """Record that a unit was interrupted, and waits again.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)
        if not self._halted:
            self._waiting.add(unit)
            self._work += self._costs[unit]
            self._release(unit)

    def end(self, unit: UnitId, trained: bool = True) -> None:
        """Record that a unit has ended.

        Args:
            unit: The unit.
            trained: Whether it is in the store; otherwise it is abandoned.
        """
        if not trained:
            self.give_up(unit)
            return
        self._running.discard(unit)
        for child in self._children.get(unit, ()):
            if child in self._waiting:
                self._release(child)

    def give_up(self, unit: UnitId) -> None:
        """Record that a unit was revoked or skipped: units built on it are not trained either.

        Args:
            unit: The unit.
        """
        self._running.discard(unit)
        given_up = [unit]
        while given_up:
            one = given_up.pop()
            given_up += self._children.get(one, ())
            if one in self._waiting:
                self._remove(one)

    def halt(self) -> None:
        """Start no further units."""
        self._halted = True
        self._waiting.clear()

    def _release(self, unit: UnitId) -> None:
        position = self._positions[unit]
        heapq.heappush(self._by_order, (position, unit))
        heapq.heappush(self._by_chain, (-self._chains[unit], position, unit))

    def _remove(self, unit: UnitId) -> None:
        self._waiting.discard(unit)
        self._work -= self._costs[unit]

    def _longest_chains(self) -> dict[UnitId, float]:
        """Return the time from each unit's start to the end of the longest chain of units built on it."""
        found: dict[UnitId, float] = {}
        for unit in sorted(self._planned, key=lambda unit: -unit.stage):
            after = max((found[child] for child in self._children.get(unit, ())), default=0.0)
            found[unit] = self._costs[unit] + after
        return found
