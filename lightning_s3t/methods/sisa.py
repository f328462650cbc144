"""SISA: all layers on every slice, one sequence, a checkpoint after each slice."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_s3t.methods.checks import check_choice, check_count
from lightning_s3t.methods.method import UnlearningMethod
from lightning_s3t.methods.registry import register_method
from lightning_s3t.plan import EpochRule, SequenceChoice


@register_method
@dataclass(frozen=True)
class SISA(UnlearningMethod):
    """Sharded, isolated, sliced, aggregated training (Bourtoule et al., arXiv 1912.03817).

    Each shard's model is trained on one slice more at each stage, all its layers at once, from where the stage before
    left it; the state after each stage is kept. A request removes the states that the data reached: the newest earlier
    state keeps serving, and the next fit trains the rest again. A request for the first slice leaves nothing of a
    shard.

    Args:
        shards: Number of shards.
        slices: Number of slices of a shard.
        epoch_rule: "sisa" trains every stage for 2E/(L+1) of the trainer's `max_epochs` (section V-B), so that the
            stages together cost as much as one training; "full" trains each for all of them.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> SISA(shards=5, slices=4).sequences_to_train(seed=0).plan()
        ((0, 1, 2, 3),)
    """

    name = "sisa"
    guarantee = "exact"
    response = "revoke"

    shards: int
    slices: int = 1
    epoch_rule: EpochRule = "sisa"

    def __post_init__(self) -> None:
        check_count("shards", self.shards)
        check_count("slices", self.slices)
        check_choice("epoch_rule", self.epoch_rule, ("full", "sisa"))

    def sequences_to_train(self, seed: int) -> SequenceChoice:
        """Return the one sequence, which is the same for all shards.

        Args:
            seed: Without effect: places are drawn, so the order of the slices need not be.
        """
        return SequenceChoice("sisa", self.slices, budget=1, seed=seed, epochs=self.epoch_rule)
