"""The trie of units: which prefixes orders share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_s3t.plan.units import SliceSequence


@dataclass(frozen=True)
class Branch:
    """Slices that orders have in common, one after the other, and where they part.

    Attributes:
        slices: The slices of this stretch, in order.
        branches: What follows; none at an order's end.
    """

    slices: SliceSequence
    branches: tuple[Branch, ...]

    @property
    def units(self) -> int:
        """Number of units in this stretch and all that follow."""
        return len(self.slices) + sum(branch.units for branch in self.branches)


def trie_of(sequences: Iterable[SliceSequence]) -> tuple[Branch, ...]:
    """Returns the branches that orders begin with.

    Args:
        sequences: Orders of the slices.

    Example:
        >>> [first] = trie_of([(0, 1, 2, 3), (0, 1, 3, 2)])
        >>> first.slices, [branch.slices for branch in first.branches], first.units
        ((0, 1), [(2, 3), (3, 2)], 6)
    """
    by_first: dict[int, list[SliceSequence]] = {}
    for order in sequences:
        if order:
            by_first.setdefault(order[0], []).append(tuple(order))
    found = []
    for orders in by_first.values():
        shared = 1
        while all(len(order) > shared and order[shared] == orders[0][shared] for order in orders):
            shared += 1
        found.append(Branch(orders[0][:shared], trie_of(order[shared:] for order in orders)))
    return tuple(found)
