"""The units of a plan, which training its sequences requires."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_s3t.core.units import Place as Place
from lightning_s3t.core.units import UnitId as UnitId

SliceSequence = tuple[int, ...]


def units_of(shards: int, sequences: Iterable[SliceSequence]) -> tuple[UnitId, ...]:
    """Return every unit that training these sequences takes.

    Sequences with a common prefix share units. They stand sequence by sequence, a parent always before its children; a
    fit trains them in the order of `order_by_worth`.

    Args:
        shards: Number of shards.
        sequences: Sequences of the slices.

    Example:
        >>> [str(unit) for unit in units_of(1, [(0, 1, 2), (0, 2, 1)])]
        ['0/0', '0/0-1', '0/0-1-2', '0/0-2', '0/0-2-1']
    """
    found: dict[UnitId, None] = {}
    for sequence in sequences:
        for shard in range(shards):
            found.update(dict.fromkeys(UnitId(shard, tuple(sequence)).lineage))
    return tuple(found)
