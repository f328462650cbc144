"""A partition by risk: those who are likelier to ask share slices."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.partition import Partition, Place, canonical_subject


@dataclass(frozen=True)
class RiskPartition:
    """Puts subjects who are likely to ask in slices of their own, and hashes within these.

    A request then mostly hits the same few slices of a shard, which the orders can keep late. A place depends on the
    subject's own id and risk, on the seed and on fixed thresholds, never on who else is there. That holds only as long
    as the risks and the thresholds were not computed from the training data: a threshold at the data's own 90 %
    quantile moves when somebody leaves. Take them from elsewhere, and keep them; a subject whose risk is changed later
    on is in another place.

    Args:
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        thresholds: Risks at which a higher band begins, ascending.
        band_slices: How many of a shard's slices each band has, from the lowest band on; one more than thresholds, L in
            all. The highest band has the last slices.
        risks: The risk of each subject; whoever is not there is in the lowest band.
        seed: The key of the hash.

    Raises:
        ConfigurationError: The bands do not fit the slices, thresholds do not ascend, or a risk is no number.

    Example:
        >>> partition = RiskPartition(
        ...     shards=2, slices=4, thresholds=(0.1,), band_slices=(3, 1), risks={"ann": 0.5, "bob": 0.01})
        >>> partition.place("ann").slice, partition.place("bob").slice < 3
        (3, True)
    """

    shards: int
    slices: int
    thresholds: tuple[float, ...]
    band_slices: tuple[int, ...]
    risks: Mapping[object, float] = field(repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        Partition(self.shards, self.slices, self.seed)  # checks them
        bands = len(self.thresholds) + 1
        if len(self.band_slices) != bands or sum(self.band_slices) != self.slices or min(self.band_slices) < 1:
            raise ConfigurationError(
                f"The bands have {self.band_slices} slices. Expected {bands} bands, one more than there are "
                f"thresholds, of at least one slice each and {self.slices} in all."
            )
        if not all(math.isfinite(threshold) for threshold in self.thresholds) or any(
            low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)
        ):
            raise ConfigurationError(f"The thresholds are {self.thresholds}. Expected finite numbers that ascend.")
        canonical = {}
        for subject, risk in self.risks.items():
            if not math.isfinite(risk):
                raise ConfigurationError(f"The risk of subject {subject!r} is {risk!r}. Expected a finite number.")
            canonical[canonical_subject(subject)] = float(risk)
        object.__setattr__(self, "risks", canonical)

    def place(self, subject: str) -> Place:
        """Returns a subject's place.

        Args:
            subject: The canonical id.
        """
        risk = self.risks.get(subject)
        band = bisect_right(self.thresholds, risk) if risk is not None else 0
        within = Partition(self.shards, self.band_slices[band], self.seed).place(subject)
        return Place(within.shard, sum(self.band_slices[:band]) + within.slice)
