"""A client's contribution to a federated closed-form head: the sums over its rows, as a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from lightning_s3t.core.floor import PRETRAINED, FloorPart, Task
from lightning_s3t.core.manifest import LayersPart
from lightning_s3t.errors import ConfigurationError, DataError, StoreError, StoreMismatchError
from lightning_s3t.store import Store
from lightning_s3t.store.heads.feature_sums import FeatureSums
from lightning_s3t.store.snapshots.tensors import decode_snapshot, encode_snapshot
from lightning_s3t.tuning.fingerprint import digest_tensors
from lightning_s3t.tuning.layers import Layers
from lightning_s3t.tuning.stages import StageBuilder


class Terms(BaseModel):
    """What all clients of a head must agree on.

    Attributes:
        part: The settings of the closed-form head.
        task: The kind of its targets.
        layers: The layer groups and the head of the network.
        pretrained: The digest of the network before any training, without its head.
        head: The digest of the head before any training, without the linear layer that is replaced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: FloorPart
    task: Task
    layers: LayersPart
    pretrained: str
    head: str

    def check_model(self, model: nn.Module) -> None:
        """Check that a model is the one that the clients have read their features from.

        Args:
            model: The model, before any training.

        Raises:
            StoreMismatchError: It is another one.
        """
        paths = {name for name, _ in model.named_modules()}
        wanted = [path for group in self.layers.groups for path in group] + self.layers.head
        missing = [path for path in wanted if path not in paths]
        if missing:
            raise StoreMismatchError(
                f"{type(model).__name__} does not have the layers {', '.join(missing[:5])} of the clients' networks. "
                "Use the model that the clients fitted with."
            )
        builder = StageBuilder(model, Layers.of(self.layers, source="the clients"), adapter=None)
        found = (builder.describe_model()["pretrained_sha256"], _digest_head(builder.base_tensors(), self.part))
        if found != (self.pretrained, self.head):
            raise StoreMismatchError(
                f"{type(model).__name__} has other pretrained weights than the clients' networks, so that its features "
                "differ. Use the model that the clients fitted with, with the same checkpoint."
            )


@dataclass(frozen=True)
class Contribution:
    """The sums over a client's rows that a closed-form head is solved from: integers, without ids and rows.

    Attributes:
        terms: What it has in common with those of other clients.
        requests: Number of requests that the client's store has carried out. An older message has fewer.
        sums: The sums.
        store: The identity of the client's store.

    Example:
        >>> Contribution.decode(b"...")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.DataError: The message is not a contribution to a federated head (...
    """

    terms: Terms
    requests: int
    sums: FeatureSums
    store: str = ""

    @classmethod
    def of(cls, store: Store) -> Contribution:
        """Read the contribution of a client from its store.

        Args:
            store: A store with `ClosedForm`, or with a floor, that is fitted on the client's rows.

        Raises:
            ConfigurationError: It has no exact closed-form head, or a fit has not yet read all rows.
        """
        while True:
            requests = store.request_number
            sums = cls._sums(store)
            if store.request_number == requests:  # none has come in between
                break
        layers, model, base = store.manifest.layers, store.manifest.model, store.load_base()
        assert layers is not None
        assert model is not None
        terms = Terms(
            part=sums.part,
            task=sums.task,
            layers=layers,
            pretrained=model.pretrained_sha256,
            head=_digest_head(base or {}, sums.part),
        )
        return cls(terms, requests, sums, store.identity)

    @staticmethod
    def _sums(store: Store) -> FeatureSums:
        state, sums = store.heads().get(PRETRAINED), store.load_head()
        if state is None or sums is None or state.certified is not None:
            raise ConfigurationError(
                f"The store {store.path} has no exact closed-form head to contribute. Fit it with the method "
                "ClosedForm, or with S3T(floor=...)."
            )
        if not state.complete:
            raise ConfigurationError(
                f"The closed-form head of the store {store.path} lacks rows of the data. Call fit with the same store, "
                "and contribute then."
            )
        return sums

    @property
    def digest(self) -> str:
        """The SHA-256 of the message."""
        return self._encode()[0]

    def encode(self) -> bytes:
        """Return it as a message: a safetensors file."""
        return self._encode()[1]

    def _encode(self) -> tuple[str, bytes]:
        described = _Description(terms=self.terms, requests=self.requests, store=self.store).model_dump_json()
        text = torch.frombuffer(bytearray(described.encode()), dtype=torch.uint8)
        return encode_snapshot({**self.sums.to_tensors(), _DESCRIPTION: text})

    @classmethod
    def decode(cls, data: bytes) -> Contribution:
        """Return a contribution from the output of `encode`.

        Args:
            data: The message.

        Raises:
            DataError: It is not one.
        """
        try:
            tensors = decode_snapshot(data, "the contribution")
            described = _Description.model_validate_json(bytes(tensors.pop(_DESCRIPTION).tolist()))
            sums = FeatureSums.from_tensors(tensors, described.terms.part, described.terms.task)
            _check_numbers(tensors, described.requests)
        except (StoreError, ValidationError, KeyError, ValueError, RuntimeError) as error:
            raise DataError(
                f"The message is not a contribution to a federated head ({str(error).splitlines()[0]}). Expected the "
                "output of Contribution.encode, of the same version of lightning-s3t."
            ) from error
        return cls(described.terms, described.requests, sums, described.store)


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    terms: Terms
    requests: int
    store: str


_DESCRIPTION = "description"


def _check_numbers(tensors: Mapping[str, Tensor], requests: int) -> None:
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point() or tensor.is_complex()]
    if floating:
        raise ValueError(f"{', '.join(floating)} are not integers")
    if requests < 0 or int(tensors["rows"]) < 0 or int(tensors["squares"].min()) < 0:
        raise ValueError("a number is negative")


def _digest_head(base: Mapping[str, Tensor], part: FloorPart) -> str:
    return digest_tensors({name: base[name] for name in base if not name.startswith(f"{part.layer}.")})
