"""How units are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lightning_s3t.plan import DataMode, EpochRule, UnitId
from lightning_s3t.tuning.randomness import unit_seed

Isolation = Literal["forkserver", "fork", "none"]


@dataclass(frozen=True)
class UnitSettings:
    """How units are trained.

    Attributes:
        shards: Number of shards.
        slices: Number of slices of a shard.
        seed: The root seed.
        data: "cumulative" or "disjoint".
        epochs: "full" for the trainer's max_epochs per stage, "sisa" for 2E/(L+1) of them.
        groups: Number of layer groups.
        isolation: How units are isolated: "forkserver", "fork" or "none".
        parallel_units: Number of units that are trained at the same time.
        digest_rows: Whether each fit compares the contents of its rows with those at the last fit.
    """

    shards: int
    slices: int
    seed: int
    data: DataMode
    epochs: EpochRule
    groups: int
    isolation: Isolation = "forkserver"
    parallel_units: int = 1
    digest_rows: bool = False

    def unit_seed(self, unit: UnitId) -> int:
        """Return the seed of all randomness of a unit.

        It is the same for all generations of people who came after the first: units trained on some of them must not
        depend on the number of earlier generations, since their people may be forgotten.

        Args:
            unit: The unit.
        """
        return unit_seed(self.seed, UnitId(min(unit.shard, self.shards), unit.prefix))

    def max_epochs(self, trainer_epochs: int | None) -> int | None:
        """Return a stage's number of epochs; None for the trainer's own.

        Cumulative slices cost (L+1)/2 times the epochs; SISA's rule (Bourtoule et al., arXiv 1912.03817, section V)
        evens that out.

        Args:
            trainer_epochs: The trainer's `max_epochs`.
        """
        if self.epochs == "full" or trainer_epochs is None or trainer_epochs < 0:
            return None
        return max(1, math.ceil(2 * trainer_epochs / (self.slices + 1)))
