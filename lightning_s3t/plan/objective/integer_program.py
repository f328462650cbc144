"""The proven optimum for few slices, by integer programming."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_s3t.plan.objective.lattice import distinct_request_sets, set_sizes
from lightning_s3t.plan.problem import Probabilities
from lightning_s3t.plan.units import SliceSequence

EXACT_SLICES = 5  # a fraction of a second; 6 slices take seconds, 8 minutes


@dataclass(frozen=True)
class Optimum:
    """A family of sequences that no other family of the same size beats.

    Attributes:
        value: The objective: expected length of the best surviving prefix, summed over the coming requests.
        sequences: The sequences, without duplicates.
    """

    value: float
    sequences: tuple[SliceSequence, ...]


def exact_optimum(probabilities: Probabilities, budget: int, horizon: int) -> Optimum:
    """Finds the best sequences for a budget, with a proof.

    The objective depends on the prefixes as sets alone. So a family is B units of flow from the empty set to the full
    one, each step adding a slice; a set is chosen if flow goes through it; and stage k survives the requested set T if
    a chosen set of k slices has nothing in common with T. That is a mixed integer program, which HiGHS solves.

    Args:
        probabilities: Of a request for each slice, shape (L,); L of 6 and more takes long.
        budget: Number of sequences, B.
        horizon: Number of requests to look ahead, counting those that hit a new slice.

    Example:
        >>> round(exact_optimum(np.full(4, 0.25), budget=2, horizon=3).value, 4)
        4.1667
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    slices, sets = len(probabilities), 2 ** len(probabilities)
    weights, sizes = distinct_request_sets(probabilities, horizon), set_sizes(slices)
    steps = [(here, slice_) for here in range(sets) for slice_ in range(slices) if not here >> slice_ & 1]
    cases = [
        (stage, int(asked)) for asked in np.flatnonzero(weights) for stage in range(1, slices - int(sizes[asked]) + 1)
    ]
    # the variables: flow along each step, whether each set is chosen, whether each stage survives each requested set
    chosen, survives = len(steps), len(steps) + sets
    rows: list[dict[int, float]] = [{} for _ in range(2 * sets)]
    low, high = np.zeros(2 * sets), np.zeros(2 * sets)
    for number, (here, slice_) in enumerate(steps):
        there = here | 1 << slice_
        rows[here][number] = 1.0  # the flow out of a set ...
        rows[there][number] = -1.0  # ... equals the flow into it
        rows[sets + there][number] = -1.0  # a set without flow is not chosen
    low[0] = high[0] = budget
    low[sets - 1] = high[sets - 1] = -budget
    for here in range(1, sets):
        rows[sets + here][chosen + here] = 1.0
        low[sets + here] = -np.inf
    for number, (stage, asked) in enumerate(cases):
        free = [here for here in range(1, sets) if sizes[here] == stage and not here & asked]
        rows.append({survives + number: 1.0} | {chosen + here: -1.0 for here in free})
    low, high = np.append(low, np.full(len(cases), -np.inf)), np.append(high, np.zeros(len(cases)))
    entries = [(row, column, value) for row, columns in enumerate(rows) for column, value in columns.items()]
    row_numbers, columns, values = zip(*entries, strict=True)
    variables = survives + len(cases)
    costs, most, integral = np.zeros(variables), np.ones(variables), np.ones(variables)
    costs[survives:] = [-weights[asked] for _, asked in cases]
    most[:chosen] = budget
    integral[survives:] = 0
    matrix = coo_array((values, (row_numbers, columns)), shape=(len(rows), variables)).tocsr()
    solution = milp(
        costs,
        constraints=LinearConstraint(matrix, low, high),
        bounds=Bounds(0, most),
        integrality=integral,
        options={"mip_rel_gap": 0.0},
    )
    flow = {step: round(float(solution.x[number])) for number, step in enumerate(steps)}
    return Optimum(-float(solution.fun), tuple(dict.fromkeys(_paths(flow, slices, budget))))


def _paths(flow: dict[tuple[int, int], int], slices: int, budget: int) -> list[SliceSequence]:
    paths = []
    for _ in range(budget):
        here, sequence = 0, []
        for _ in range(slices):
            slice_ = next(slice_ for slice_ in range(slices) if flow.get((here, slice_), 0) > 0)
            flow[here, slice_] -= 1
            here |= 1 << slice_
            sequence.append(slice_)
        paths.append(tuple(sequence))
    return paths
