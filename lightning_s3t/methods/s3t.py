"""S3T: one layer group a slice, several sequences of the slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods.checks import check_choice, check_count
from lightning_s3t.methods.method import UnlearningMethod
from lightning_s3t.methods.registry import register_method
from lightning_s3t.plan import DataMode, EpochRule, RiskBands, SequenceChoice


@register_method
@dataclass(frozen=True)
class S3TMethod(UnlearningMethod):
    """Sequence-aware sharded sliced training (Basu Roy Chowdhury et al., arXiv 2406.16257).

    A request deactivates the layers that the data reached; the longest prefix that it did not reach keeps serving.

    Args:
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        budget: Number of sequences, B; or a limit on their cost per shard.
        sequences: The planner, or the sequences themselves.
        groups: Number of layer groups; None for one per slice. With fewer, consecutive stages continue with the same
            group, so that a network with few blocks can have more slices.
        stage_data: "cumulative" or "disjoint".
        epoch_rule: "full" or "sisa".
        request_prior: The probability of a request for each slice.
        risk_bands: `RiskBands`, or a mapping of its arguments.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> S3TMethod(shards=2, slices=3, budget=2).partition(seed=0)
        Partition(shards=2, slices=3, seed=0, bands=(), generations=0)
    """

    name = "s3t"
    guarantee = "exact"
    response = "revoke"

    shards: int
    slices: int
    budget: int | Mapping[str, float]
    sequences: str | Sequence[Sequence[int]] = "optimal"
    groups: int | None = None  # type: ignore[assignment]
    stage_data: DataMode = "cumulative"
    epoch_rule: EpochRule = "full"
    request_prior: Sequence[float] | Sequence[Sequence[float]] | None = None
    risk_bands: RiskBands | Mapping[str, Any] | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_count("shards", self.shards)
        check_count("slices", self.slices)
        if not isinstance(self.budget, Mapping):
            check_count("budget", self.budget)
        groups = self.slices if self.groups is None else self.groups
        check_count("groups", groups)
        if groups > self.slices:
            raise ConfigurationError(
                f"Expected argument `groups` to be at most the number of slices, {self.slices}, but got {groups}: a "
                "stage trains one group."
            )
        check_choice("stage_data", self.stage_data, ("cumulative", "disjoint"))
        check_choice("epoch_rule", self.epoch_rule, ("full", "sisa"))
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "risk_bands", RiskBands.of(self.risk_bands))

    def sequences_to_train(self, seed: int) -> SequenceChoice:
        """Return which sequences each shard is trained on.

        Args:
            seed: For planners that draw.
        """
        return SequenceChoice(
            self.sequences, self.slices, self.budget, seed, self.request_prior, self.stage_data, self.epoch_rule
        )
