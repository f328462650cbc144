"""Priors of slices, computed from a prior for each subject."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightning_s3t.core.subjects import canonical_subject
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.partition import Partition
from lightning_s3t.plan.problem import Probabilities
from lightning_s3t.plan.risk import RiskBands


def slice_prior(
    subjects: Mapping[object, float], partition: Partition, bands: RiskBands | None = None
) -> Probabilities:
    """Sum the priors of subjects over the slices that they are in.

    Args:
        subjects: How likely each subject is to ask: non-negative numbers, of which only the ratios matter.
        partition: The partition of the subjects.
        bands: The bands of risk, where the partition has any.

    Returns:
        Shape (shards, slices): the probability that the next request is for each, summing to 1. Planners and the
            simulator accept it directly.

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
            "The priors of all subjects are 0. Expected at least one positive prior; to use none, pass None."
        )
    probabilities: Probabilities = found / found.sum()
    return probabilities
