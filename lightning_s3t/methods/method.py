"""The interface of unlearning methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from lightning_s3t.core.floor import CertifiedPart
from lightning_s3t.core.guarantees import Guarantee, Response
from lightning_s3t.plan import DataMode, EpochRule, Partition, RiskBands, SequenceChoice
from lightning_s3t.tuning.floor import Floor

Need = Literal["forgotten rows", "retained rows", "training steps"]
"""What a method needs to carry out a request: rows of the training data, or records of the training steps."""


class UnlearningMethod(ABC):
    """A way to train a model so that data can be removed from it.

    A method defines how it divides the data into cells, which units it trains on them, and the effect of a deletion
    request on a unit that it reaches:

    - "revoke": the unit is taken out of service by the request itself, and the remaining units keep serving. Nothing is
      computed.
    - "replace": the request waits, and the unit keeps serving, until the next fit has made a replacement.
    - "subtract": there are no units. A closed-form head serves, and the request itself subtracts the rows from it.

    Everything else is the same for all methods: `trainer.fit` builds missing units, the store keeps them with their
    history and receipts, and `EnsembleModule.from_store` serves them.

    Attributes:
        name: The method's name in the registry, in configs and in receipts.
        guarantee: Its guarantee of every remaining unit after a request, which is part of every receipt.
        response: The effect of a request.
        shards: Number of shards, m.
        slices: Number of slices of a shard, L; as many stages has a shard's training.
        groups: Number of layer groups, at most L. With fewer, consecutive stages train the same group.
        stage_data: "cumulative" trains stage k on the first k slices of a sequence, "disjoint" on the k-th alone.
        epoch_rule: "full" trains every stage for the trainer's `max_epochs`, "sisa" for 2E/(L+1) of them.
        risk_bands: Which subjects are likely to ask, so that they share slices; None to place all subjects equally.
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
    def has_units(self) -> bool:
        """Whether the method trains units; otherwise a closed-form head serves alone."""
        return self.response != "subtract"

    @property
    def waits(self) -> bool:
        """Whether requests wait for the next fit, which replaces the model."""
        return self.response == "replace"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The data that a request needs in addition to the store; empty if units are only taken out of service."""
        return ()

    @property
    def head(self) -> Floor | None:
        """The closed-form head that serves in place of units, if the response is "subtract"; otherwise None."""
        return None

    @property
    def certified(self) -> CertifiedPart | None:
        """The settings of that head's certificate, if the guarantee is "certified"; otherwise None."""
        return None

    def partition(self, seed: int) -> Partition:
        """Return where each subject's data belongs.

        Args:
            seed: Seed of the places.
        """
        bands = self.risk_bands.slices if self.risk_bands is not None else ()
        return Partition(self.shards, self.slices, seed, bands)


class WholeModelMethod(UnlearningMethod):
    """A method with one model, trained on all data at once: the data is one cell, so every request reaches the model.

    A request waits for the next fit, which replaces the model; until then the model keeps serving, with the data in it.
    The layers all belong to one group.
    """

    response = "replace"
    shards = 1
    slices = 1

    @property
    def needs(self) -> tuple[Need, ...]:
        """The data that a request needs in addition to the store."""
        return ("retained rows",)

    def sequences_to_train(self, seed: int) -> SequenceChoice:
        """Return the one sequence of one slice.

        Args:
            seed: Without effect.
        """
        return SequenceChoice(((0,),), slices=1, budget=1, seed=seed)


class HeadMethod(UnlearningMethod):
    """A method without units: a closed-form head on the pretrained network serves, and a request subtracts from it.

    The network is cut into as many layer groups as the head reads.

    Attributes:
        layers: Number of layer groups whose outputs are features too.
    """

    response = "subtract"
    shards = 1
    slices = 1
    layers: int

    def __post_init__(self) -> None:
        _ = self.head  # checks the arguments
        for name in ("slices", "groups"):  # as many as the head reads
            object.__setattr__(self, name, max(1, self.layers))

    def sequences_to_train(self, seed: int) -> SequenceChoice:
        """Return no sequence: there are no units.

        Args:
            seed: Without effect.
        """
        return SequenceChoice((), self.slices, budget=0, seed=seed)
