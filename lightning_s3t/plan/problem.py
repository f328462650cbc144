"""The planning problem: the number of slices and the probability of a request for each, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_s3t.errors import ConfigurationError

Prior: TypeAlias = ArrayLike
Probabilities: TypeAlias = NDArray[np.float64]

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class PlanProblem:
    """Slices and requests for them, for planners and theory. `of` checks a caller's arguments.

    Attributes:
        slices: Number of slices, L.
        probabilities: Probability of a request for each slice: shape (L,), summing to 1.
        horizon: Number of requests to look ahead, counting those that hit a new slice.
        places: Probability of a request for each shard and slice: shape (m, L), summing to 1. Only functions that
            evaluate all shards together need it.

    Example:
        >>> problem = PlanProblem.of(slices=3, prior=[0.5, 0.25, 0.25])
        >>> problem.probabilities.tolist(), problem.horizon, problem.uniform
        ([0.5, 0.25, 0.25], 2, False)
    """

    slices: int
    probabilities: Probabilities
    horizon: int
    places: Probabilities

    @classmethod
    def of(
        cls, slices: int, prior: Prior | None = None, horizon: int | None = None, shards: int | None = None
    ) -> PlanProblem:
        """Check the arguments of planners and theory.

        Args:
            slices: Number of slices, L.
            prior: Probability of a request for each slice, or for each shard and slice; None for equal probabilities.
            horizon: Number of requests to look ahead; None for L - 1 (1 where there is one slice).
            shards: Number of shards, m; None to consider a single shard.

        Raises:
            ConfigurationError: A number is out of range, or the prior is invalid.
        """
        for name, value in (("slices", slices), ("shards", 1 if shards is None else shards)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(
                    f"Expected argument `{name}` to be an integer of at least 1 but got {value!r}."
                )
        if horizon is None:
            horizon = max(slices - 1, 1)
        elif isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            raise ConfigurationError(f"Expected argument `horizon` to be an integer of at least 1 but got {horizon!r}.")
        by_slice = check_prior(prior, slices)
        places = by_slice[None] if shards is None else check_place_prior(prior, shards, slices)
        return cls(slices, by_slice, min(horizon, slices), places)

    @property
    def shards(self) -> int:
        """Number of shards, m."""
        return len(self.places)

    @property
    def uniform(self) -> bool:
        """Whether every slice is as likely as the next."""
        return bool(np.ptp(self.probabilities) < 1e-12)


def check_prior(prior: Prior | None, slices: int) -> Probabilities:
    """Return the probability of a request for each slice.

    Args:
        prior: One number per slice, or one per shard and slice (`slice_prior` gives these), which are summed over the
            shards. None for equal ones.
        slices: Number of slices, L.

    Returns:
        Shape (L,), summing to 1.

    Raises:
        ConfigurationError: A number is negative or not finite, the shape is wrong, or the sum is not 1.

    Example:
        >>> check_prior([0.5, 0.25, 0.25], slices=3).tolist()
        [0.5, 0.25, 0.25]
        >>> check_prior([0.5, 0.2], slices=2)
        Traceback (most recent call last):
        lightning_s3t.errors.ConfigurationError: The prior sums to 0.7. Expected probabilities that sum to 1. Divide
            them by their sum.
    """
    if prior is None:
        return np.full(slices, 1 / slices)
    found = _numbers(prior)
    if found.ndim not in (1, 2) or found.shape[-1] != slices:
        raise ConfigurationError(
            f"The prior has the shape {found.shape}. Expected one probability for each of the {slices} slices, or for "
            f"each shard and slice (shape (shards, {slices}))."
        )
    by_slice: Probabilities = _normalised(found).reshape(-1, slices).sum(axis=0)
    return by_slice


def check_place_prior(prior: Prior | None, shards: int, slices: int) -> Probabilities:
    """Return the probability of a request for each shard and slice.

    Args:
        prior: One number per slice (all shards are then equally likely), or one per shard and slice. None for equal
            ones.
        shards: Number of shards, m.
        slices: Number of slices, L.

    Returns:
        Shape (m, L), summing to 1.

    Raises:
        ConfigurationError: A number is negative or not finite, the shape is wrong, or the sum is not 1.

    Example:
        >>> check_place_prior([0.5, 0.5], shards=2, slices=2).tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """
    if prior is None:
        return np.full((shards, slices), 1 / (shards * slices))
    found = _numbers(prior)
    if found.shape not in ((slices,), (shards, slices)):
        raise ConfigurationError(
            f"The prior has the shape {found.shape}. Expected one probability for each of the {slices} slices, or "
            f"shape ({shards}, {slices}), one for each shard and slice."
        )
    normalised = _normalised(found)
    return normalised if normalised.ndim == 2 else np.tile(normalised / shards, (shards, 1))


def _numbers(prior: Prior) -> Probabilities:
    try:
        found = np.asarray(prior, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The prior cannot be read as numbers: {error}. Expected one probability per slice."
        ) from error
    if not np.isfinite(found).all() or (found < 0).any():
        wrong = found[~(np.isfinite(found) & (found >= 0))][0]
        raise ConfigurationError(f"The prior has the entry {wrong:g}. Expected probabilities from 0 to 1.")
    return found


def _normalised(found: Probabilities) -> Probabilities:
    total = float(found.sum())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigurationError(
            f"The prior sums to {total:g}. Expected probabilities that sum to 1. Divide them by their sum."
        )
    return found / total
