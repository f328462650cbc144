"""The partition: which shard and slice a subject belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning_s3t.core.subjects import canonical_subject as canonical_subject
from lightning_s3t.core.units import Place
from lightning_s3t.errors import ConfigurationError


@dataclass(frozen=True)
class Partition:
    """Puts every subject in a slice by a keyed hash of its id.

    A place depends on the id and the seed alone, so nobody's place depends on anybody else's presence. That is what
    lets a rebuild after a deletion be, bit for bit, a first training without the subject; shuffled splits of equal
    size cannot have it.

    Without the secret nobody can tell a place from an id: what serves shows which slices requests reached, and ids can
    be guessed. `S3T(partition="public")` does without a secret, so that others can repeat an experiment.

    Args:
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        seed: What the key of the hash is made from.
        bands: How many of a shard's slices each band of risk has, from the lowest on (`RiskBands`); empty for no bands.
        secret: What else the key is made from: a store's own secret, at most 64 bytes; empty for a public partition.

    Raises:
        ConfigurationError: A number is out of range, or the bands do not fill the slices.

    Example:
        >>> partition = Partition(shards=5, slices=4, seed=0)
        >>> partition.place("user-17") == partition.place("user-17")
        True
    """

    shards: int
    slices: int
    seed: int = 0
    bands: tuple[int, ...] = ()
    secret: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        for name, value, least in (
            ("shards", self.shards, 1),
            ("slices", self.slices, 1),
            ("seed", self.seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"Expected argument `{name}` to be an integer of at least {least} but got {value!r}."
                )

        if self.bands and (sum(self.bands) != self.slices or min(self.bands) < 1):
            raise ConfigurationError(
                f"The bands of risk have {self.bands} slices. Expected at least one slice each, {self.slices} in all."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What a store notes of it, JSON-ready: all but the secret."""
        kind = "secret" if self.secret else "public"
        return {
            "shards": self.shards,
            "slices": self.slices,
            "seed": self.seed,
            "bands": list(self.bands),
            "kind": kind,
        }

    def place(self, subject: str, band: int = 0) -> Place:
        """Return a subject's place.

        Args:
            subject: The canonical id.
            band: The subject's band of risk, from 0.
        """
        return next(self.places([subject], [band]))

    def places(self, subjects: Iterable[str], bands: Iterable[int]) -> Iterator[Place]:
        """Return the places of several subjects, in order.

        Args:
            subjects: Their canonical ids.
            bands: Their bands of risk.
        """
        seed = str(self.seed).encode()
        key = hashlib.blake2b(seed, digest_size=32, key=self.secret, person=b"s3t-partition").digest()
        for subject, band in zip(subjects, bands, strict=True):
            first, slices = sum(self.bands[:band]), self.bands[band] if self.bands else self.slices
            digest = hashlib.blake2b(subject.encode(errors="surrogatepass"), digest_size=16, key=key).digest()
            # 128 bits: the bias of the modulo is below 2**-100
            number = int.from_bytes(digest, "big") % (self.shards * slices)
            shard, slice_ = divmod(number, slices)
            yield Place(shard, first + slice_)
