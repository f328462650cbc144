"""The order in which missing units are built: those that improve serving most for their cost come first."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.cost import compute_per_sample, stage_prices
from lightning_s3t.plan.stage_rules import DataMode, EpochRule
from lightning_s3t.plan.units import SliceSequence, UnitId

DIGITS = 9


@dataclass(frozen=True, order=True)
class _Step:
    """The next unit of a shard, ordered against those of other shards; the smallest comes first.

    Attributes:
        deeper: How much deeper its shard will serve per unit of cost, negated.
        served: How deep the shard already serves: among equals, the one that serves less comes first.
        lasting: How much deeper its shard will serve after the next request, per unit of cost, negated.
    """

    deeper: float
    served: int
    lasting: float


def order_by_worth(
    missing: Iterable[UnitId],
    present: Iterable[UnitId],
    slices: int,
    data: DataMode = "cumulative",
    epochs: EpochRule = "full",
    groups: int | None = None,
) -> tuple[UnitId, ...]:
    """Return missing units ordered by how much they improve serving, relative to their cost.

    A unit adds depth if its shard then serves a longer prefix. Otherwise it adds endurance: how much longer the shard's
    best survivor will be, on average, after one more request for any of its slices. The units that it leads to count
    too: of all units that could be built next, together with their ancestors, the one that adds most for its cost is
    started. Depth comes before endurance. So each shard first gets a unit, then the shards grow deeper, and then they
    become durable.

    The cost of a unit is that of its stage (`cost_of`), whatever the number of rows: the order depends only on which
    units are missing and which are present.

    Args:
        missing: Units to build, in the plan's order, which decides between equal ones; parents before children.
        present: Existing units, which stay.
        slices: Number of slices, L.
        data: As in `cost_of`.
        epochs: As in `cost_of`.
        groups: As in `cost_of`.

    Example:
        >>> from lightning_s3t.plan import units_of
        >>> [str(unit) for unit in order_by_worth(units_of(2, [(0, 1), (1, 0)]), [], slices=2)]
        ['0/0', '1/0', '0/0-1', '1/0-1', '0/1', '1/1', '0/1-0', '1/1-0']
    """
    prices = stage_prices(slices, data, epochs) * compute_per_sample(slices, groups)
    wanted, there = _by_shard(missing), _by_shard(present)
    known: dict[tuple[tuple[SliceSequence, ...], frozenset[SliceSequence]], list[tuple[_Step, SliceSequence]]] = {}
    queue: list[tuple[_Step, int, int]] = []
    steps: dict[int, list[tuple[_Step, SliceSequence]]] = {}
    for shard, prefixes in wanted.items():
        state = tuple(prefixes), frozenset(there.get(shard, ()))
        if state not in known:  # shards that lack the same have the same order
            known[state] = list(_steps(*state, slices, prices))
        steps[shard] = known[state]
        heapq.heappush(queue, (steps[shard][0][0], shard, 0))
    found = []
    while queue:
        _, shard, number = heapq.heappop(queue)
        found.append(UnitId(shard, steps[shard][number][1]))
        if number + 1 < len(steps[shard]):
            heapq.heappush(queue, (steps[shard][number + 1][0], shard, number + 1))
    return tuple(found)


def _by_shard(units: Iterable[UnitId]) -> Mapping[int, list[SliceSequence]]:
    found: dict[int, list[SliceSequence]] = {}
    for unit in units:
        found.setdefault(unit.shard, []).append(unit.prefix)
    return found


def _steps(
    missing: Sequence[SliceSequence], present: Iterable[SliceSequence], slices: int, prices: NDArray[np.float64]
) -> Iterator[tuple[_Step, SliceSequence]]:
    numbers = {prefix: number for number, prefix in enumerate(missing)}
    # of each: the missing units that it is built of, and those that are built on it, itself among both
    chains = [[numbers[p[:k]] for k in range(1, len(p) + 1) if p[:k] in numbers] for p in missing]
    later: list[list[int]] = [[] for _ in missing]
    for number, chain in enumerate(chains):
        for ancestor in chain:
            later[ancestor].append(number)
    own = np.array([prices[len(prefix) - 1] for prefix in missing])
    costs = np.array([own[chain].sum() for chain in chains])
    lengths = np.array([len(prefix) for prefix in missing])
    left = np.stack([_left_without(prefix, slices) for prefix in missing])
    there = list(present)
    served = max(map(len, there), default=0)
    spared = np.max([np.zeros(slices, int), *(_left_without(prefix, slices) for prefix in there)], axis=0)
    waits = np.ones(len(missing), bool)
    while waits.any():
        each = np.where(waits, costs, np.inf)
        deeper = (np.maximum(lengths - served, 0) / each).round(DIGITS)
        lasting = (np.maximum(left - spared, 0).sum(axis=1) / slices / each).round(DIGITS)
        # the first of the best in the plan's order; existing units are not candidates
        best = max(np.flatnonzero(waits), key=lambda number: (deeper[number], lasting[number]))
        unit = next(number for number in chains[best] if waits[number])
        yield _Step(-float(deeper[best]), served, -float(lasting[best])), missing[unit]
        waits[unit] = False
        costs[later[unit]] -= own[unit]
        served = max(served, int(lengths[unit]))
        spared = np.maximum(spared, left[unit])


def _left_without(prefix: SliceSequence, slices: int) -> NDArray[np.int64]:
    """Returns how long the surviving part of a prefix is once each of the slices is asked for: shape (L,)."""
    left = np.full(slices, len(prefix))
    left[list(prefix)] = range(len(prefix))
    return left
