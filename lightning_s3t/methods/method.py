"""What every unlearning method says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from lightning_s3t.core.guarantees import Guarantee, Response
from lightning_s3t.plan import DataMode, EpochRule, Partition, RiskBands, SequenceChoice

Need = Literal["forgotten rows", "retained rows", "training steps"]
"""What a method needs to carry out a request: rows of the training data, or records of the training steps."""


class UnlearningMethod(ABC):
    """A way to train a model so that data can be removed from it.

    A method says into which cells it cuts the data, which units it trains on them, and what a deletion request does
    to a unit that it reaches:

    - "revoke": the unit is taken out of service within the request, and what is left serves on. Nothing is computed.
    - "replace": the request waits, and the unit serves on, until the next fit has made another one to put in its place.

    Everything else is the same for all methods: `trainer.fit` builds what is missing, the store keeps it with its
    history and receipts, and `EnsembleModule.from_store` serves it.

    Attributes:
        name: What the method is called in a registry, a config and a receipt.
        guarantee: What it promises of every unit that is left after a request. It stands in every receipt.
        response: What a request does to a unit that it reaches.
        shards: Number of shards, m.
        slices: Number of slices of a shard, L; as many stages has a shard's training.
        groups: Number of layer groups, at most L. With fewer, consecutive stages train the same group.
        stage_data: "cumulative" trains stage k on the first k slices of a sequence, "disjoint" on the k-th alone.
        epoch_rule: "full" trains every stage for the trainer's `max_epochs`, "sisa" for 2E/(L+1) of them.
        risk_bands: Which subjects are likely to ask, so that they share slices; None to place all alike.
    """

    name: ClassVar[str]
    guarantee: ClassVar[Guarantee]
    response: ClassVar[Response]

    shards: int
    slices: int
    groups: int = 1
    stage_data: DataMode = "cumulative"
    epoch_rule: EpochRule = "full"
    risk_bands: RiskBands | None = None

    @abstractmethod
    def sequences_to_train(self, seed: int) -> SequenceChoice:
        """Return which sequences of its slices each shard is trained on.

        Args:
            seed: For planners that draw.
        """

    @property
    def needs(self) -> tuple[Need, ...]:
        """What a request needs beside the store; empty where units are only taken out of service."""
        return ()

    def partition(self, seed: int) -> Partition:
        """Return where each subject's data belongs.

        Args:
            seed: What places follow from.
        """
        bands = self.risk_bands.slices if self.risk_bands is not None else ()
        return Partition(self.shards, self.slices, seed, bands)


class WholeModelMethod(UnlearningMethod):
    """A method with one model, trained on all data at once: the data is one cell, so every request reaches the model.

    A request waits for the next fit, which puts another model in its place; until then the model serves on, with the
    data in it. The layers all belong to one group.
    """

    response = "replace"
    shards = 1
    slices = 1

    @property
    def needs(self) -> tuple[Need, ...]:
        """What a request needs beside the store."""
        return ("retained rows",)

    def sequences_to_train(self, seed: int) -> SequenceChoice:
        """Return the one sequence of one slice.

        Args:
            seed: Without effect.
        """
        return SequenceChoice(((0,),), slices=1, budget=1, seed=seed)
