"""The floor of a store: a closed-form head on pretrained features, which answers when no unit is left."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

CLIP = 4.0
"""Features are divided by their row's mean absolute value; the integers end at this multiple of it."""

Task = Literal["multiclass", "multilabel", "binary", "regression"]
TASKS: tuple[str, ...] = get_args(Task)

PRETRAINED = "pretrained"
"""The source name of the floor's features; a survivor's closed-form head has the name of its unit instead."""


class FloorPart(BaseModel):
    """The settings of a store's floor.

    Attributes:
        layer: The path of the linear layer that the closed-form head replaces.
        layers: The paths of the layers whose pooled outputs are features too, from the top down.
        width: The number of features: with `layers`, of the projection, otherwise the inputs of the linear layer.
        outputs: The number of its outputs.
        bits: Number of bits that a feature is rounded to.
        target_step: Targets of a regression are rounded to multiples of it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    layer: str
    layers: Annotated[tuple[str, ...], Field(strict=False)] = ()  # JSON has lists
    width: int
    outputs: int
    bits: int
    target_step: float

    @property
    def limit(self) -> int:
        """The largest absolute value of an integer feature."""
        return (1 << (self.bits - 1)) - 1

    @property
    def votes_per_shard_vote(self) -> int:
        """How many votes the floor has for each vote of the shards when they are whole.

        A floor that reads layers is worth more beside the same shards (docs/benchmarks/accuracy.md).
        """
        return 4 if self.layers else 2


class CertifiedPart(BaseModel):
    """The settings of a certified head, and its certificate.

    Attributes:
        epsilon: Of the certificate, for one published head.
        delta: Likewise.
        l2: The penalty on half the squared weights, per row.
        noise: The standard deviation of the noise on each weight.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    epsilon: float
    delta: float
    l2: float
    noise: float
