"""Priors that the tests of the planners share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Prior = NDArray[np.float64]


def uniform(slices: int) -> Prior:
    return np.full(slices, 1 / slices)


def halving(slices: int) -> Prior:
    weights = 2.0 ** -np.arange(slices)
    return weights / weights.sum()


def zipf(slices: int) -> Prior:
    weights = 1 / np.arange(1, slices + 1)
    return weights / weights.sum()


PRIORS = {"uniform": uniform, "zipf": zipf, "halving": halving}
