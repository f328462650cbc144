"""Simulated annealing of a family of orders, by swaps of neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence as OrderedCollection

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.plan.lattice import Lattice, Ties
from lightning_s3t.plan.units import SliceSequence

COLDEST = 0.01
IMPROVEMENT = 1e-9


class Annealing:
    """Simulated annealing on the exact landscape.

    Swapping two neighbours of an order changes one of its prefixes as a set, so only the weights of the sets that
    leave the old or the new prefix alone need to be looked at.

    Args:
        lattice: The landscape.
    """

    def __init__(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self._untouched: dict[int, NDArray[np.intp]] = {}

    def improve(
        self, orders: OrderedCollection[SliceSequence], moves: int, heat: float, draw: Ties
    ) -> tuple[tuple[SliceSequence, ...], float]:
        """Returns the best family on the way, and its value; it is never below the one that it starts from.

        Args:
            orders: Where to start.
            moves: How many swaps to try.
            heat: The first temperature, in multiples of the mean value of a stage.
            draw: Draws from [0, 1).
        """
        slices, weights = self.lattice.slices, self.lattice.weights
        family = [list(order) for order in orders]
        prefixes = [self._prefixes(order) for order in orders]
        covers = np.zeros((slices + 1, 2**slices), np.int16)
        for sets in prefixes:
            for stage in range(1, slices + 1):
                covers[stage, self._leaving_alone(sets[stage])] += 1
        value = float(((covers[1:] > 0) @ weights).sum())
        best, best_value = tuple(orders), value
        warmest = heat * max(value, IMPROVEMENT) / (slices * len(family))
        for move in range(moves if slices > 1 else 0):
            number, stage = int(draw() * len(family)), 1 + int(draw() * (slices - 1))
            order, sets, cover = family[number], prefixes[number], covers[stage]
            swapped = sets[stage - 1] | 1 << order[stage]
            old, new = self._leaving_alone(sets[stage]), self._leaving_alone(swapped)
            cover[old] -= 1
            gain = float(weights[new] @ (cover[new] == 0)) - float(weights[old] @ (cover[old] == 0))
            temperature = warmest * (COLDEST / heat) ** (move / moves)
            if gain >= 0 or draw() < math.exp(gain / temperature):
                cover[new] += 1
                sets[stage] = swapped
                order[stage - 1], order[stage] = order[stage], order[stage - 1]
                value += gain
                if value > best_value + IMPROVEMENT:
                    best, best_value = tuple(tuple(order) for order in family), value
            else:
                cover[old] += 1
        return best, best_value

    def _prefixes(self, order: SliceSequence) -> list[int]:
        sets = [0]
        for slice_ in order:
            sets.append(sets[-1] | 1 << slice_)
        return sets

    def _leaving_alone(self, prefix: int) -> NDArray[np.intp]:
        if prefix not in self._untouched:
            found = np.zeros(1, np.intp)
            for slice_ in range(self.lattice.slices):
                if not prefix >> slice_ & 1:
                    found = np.concatenate([found, found | 1 << slice_])
            self._untouched[prefix] = found
        return self._untouched[prefix]
