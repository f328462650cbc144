"""The manifest of a store: the settings that its units were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_s3t.core.floor import CertifiedPart
from lightning_s3t.core.guarantees import CERTIFIED_HEAD, Certificate, Guarantee, Isolation, Response
from lightning_s3t.errors import ConfigurationError

_CLOSED = ConfigDict(frozen=True, strict=True, extra="forbid")
# a trainer has many settings, and new versions add more: all are compared, and those that are read have a type
_OPEN = ConfigDict(frozen=True, strict=True, extra="allow")


class PartitionPart(BaseModel):
    """The arguments of `Partition`, which checks their values; its secret is stored with the store's key."""

    model_config = _CLOSED

    shards: int
    slices: int
    seed: int = 0
    bands: tuple[int, ...] | list[int] = ()
    kind: Literal["secret", "public"] = "public"


class LayersPart(BaseModel):
    """The layers that units own: each group's modules, and the head's."""

    model_config = _CLOSED

    network: str
    groups: list[list[str]]
    head: list[str]


class ModelPart(BaseModel):
    """The model before any training."""

    model_config = _CLOSED

    class_path: Annotated[str | None, Field(alias="class")] = None
    pretrained_sha256: str
    pretrained: dict[str, str] = {}
    head_shapes: dict[str, list[int]]
    hparams: dict[str, Any] = {}


class MethodPart(BaseModel):
    """The unlearning method: the effect of a request, and the guarantee of what serves after it."""

    model_config = _CLOSED

    name: str = "s3t"
    guarantee: Guarantee = "exact"
    response: Response = "revoke"
    certified: CertifiedPart | None = None

    @property
    def has_units(self) -> bool:
        """Whether the method trains units; otherwise a closed-form head serves alone."""
        return self.response != "subtract"

    @property
    def waits(self) -> bool:
        """Whether requests wait for the next fit, which replaces the model."""
        return self.response == "replace"

    @property
    def certificate(self) -> Certificate | None:
        """The numbers of a certified guarantee; None for another."""
        if self.certified is None:
            return None
        return Certificate(self.certified.epsilon, self.certified.delta, CERTIFIED_HEAD)


class TrainingPart(BaseModel):
    """How units are trained: settings that are read by name have a type, the trainer's others are kept as they are."""

    model_config = _OPEN

    data: str | None = None
    epochs: str | None = None
    isolation: Isolation = "none"
    precision: str = ""


class Manifest(BaseModel):
    """The settings that a store's units were trained with. A store cannot be opened with different ones.

    Only the partition is required for a store; a fit adds the rest.

    Attributes:
        partition: The assignment of subjects to slices.
        method: How data is removed.
        layers: The layer groups and the head.
        adapter: The PEFT config; None for whole layers.
        model: The model before any training.
        training: How units are trained.

    Example:
        >>> manifest = Manifest.of({"partition": {"shards": 2, "slices": 3}})
        >>> manifest.partition.slices, manifest.isolation
        (3, 'none')
        >>> Manifest.of({"partition": {"shards": 2}, "head": []})
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: ... partition.slices: Field required; head: Extra inputs are not ...
    """

    model_config = _CLOSED

    partition: PartitionPart
    method: MethodPart = MethodPart()
    layers: LayersPart | None = None
    adapter: dict[str, Any] | None = None
    model: ModelPart | None = None
    training: TrainingPart | None = None

    @property
    def isolation(self) -> Isolation:
        """How units were isolated; "none" if unknown."""
        return self.training.isolation if self.training is not None else "none"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Manifest:
        """Validate settings and convert them to their types.

        Args:
            settings: JSON-ready data.

        Raises:
            ConfigurationError: A setting is missing, unknown, or of the wrong type; the message names all of them.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ConfigurationError(
                f"The settings are not those of a store: {wrong}. Expected the fields of `Manifest`."
            ) from error
