"""Priors: how likely a request is for each slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_s3t.core.subjects import canonical_subject
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.partition import Partition
from lightning_s3t.plan.risk import RiskBands

Prior: TypeAlias = ArrayLike
Probabilities: TypeAlias = NDArray[np.float64]

SUM_TOLERANCE = 1e-6


def check_prior(prior: Prior | None, slices: int) -> Probabilities:
    """Returns the probability that a request is for each slice.

    Args:
        prior: One number a slice, or one a shard and slice (`slice_prior` gives these), which are summed over the
            shards. None for equal ones.
        slices: Number of slices, L.

    Returns:
        Shape (L,), summing to 1.

    Raises:
        ConfigurationError: A number is negative or not finite, the shape is off, or the sum is not 1.

    Example:
        >>> check_prior([0.5, 0.25, 0.25], slices=3).tolist()
        [0.5, 0.25, 0.25]
        >>> check_prior([0.5, 0.2], slices=2)
        Traceback (most recent call last):
        lightning_s3t.errors.ConfigurationError: The prior sums to 0.7. Expected probabilities that sum to 1: divide
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
    """Returns the probability that a request is for each shard and slice.

    Args:
        prior: One number a slice (every shard is then asked alike), or one a shard and slice. None for equal ones.
        shards: Number of shards, m.
        slices: Number of slices, L.

    Returns:
        Shape (m, L), summing to 1.

    Raises:
        ConfigurationError: A number is negative or not finite, the shape is off, or the sum is not 1.

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


def slice_prior(
    subjects: Mapping[object, float], partition: Partition, bands: RiskBands | None = None
) -> Probabilities:
    """Sums what is known of each subject over the slice that the subject is in.

    Args:
        subjects: How likely each subject is to ask: any non-negative numbers, since only their ratios count.
        partition: Where the subjects are.
        bands: The bands of risk, where the partition has any.

    Returns:
        Shape (shards, slices): the probability that the next request is for each, summing to 1. Planners take it as it
        is, and the simulator too.

    Raises:
        ConfigurationError: A number is negative or not finite, or all are 0.

    Example:
        >>> partition = Partition(shards=1, slices=2)
        >>> slice_prior({"ann": 2.0, "bob": 1.0, "eve": 1.0}, partition).tolist()
        [[0.75, 0.25]]
    """
    found = np.zeros((partition.shards, partition.slices))
    for subject, weight in subjects.items():
        if not np.isfinite(weight) or weight < 0:
            raise ConfigurationError(
                f"The prior of subject {subject!r} is {weight!r}. Expected a non-negative, finite number."
            )
        name = canonical_subject(subject)
        place = partition.place(name, bands.band(name) if bands is not None else 0)
        found[place.shard, place.slice] += weight
    if not found.sum() > 0:
        raise ConfigurationError(
            "The priors of all subjects are 0. Expected at least one subject who may ask; without a prior, pass None."
        )
    probabilities: Probabilities = found / found.sum()
    return probabilities


def _numbers(prior: Prior) -> Probabilities:
    try:
        found = np.asarray(prior, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The prior cannot be read as numbers: {error}. Expected one probability a slice."
        ) from error
    if not np.isfinite(found).all() or (found < 0).any():
        wrong = found[~(np.isfinite(found) & (found >= 0))][0]
        raise ConfigurationError(f"The prior has the entry {wrong:g}. Expected probabilities from 0 to 1.")
    return found


def _normalised(found: Probabilities) -> Probabilities:
    total = float(found.sum())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigurationError(
            f"The prior sums to {total:g}. Expected probabilities that sum to 1: divide them by their sum."
        )
    return found / total
