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

    A place depends only on the id and the seed, not on which other subjects exist. This makes a rebuild after a
    deletion bitwise equal to a first training without the subject; shuffled splits of equal size do not have this
    property.

    Without the secret, an id does not reveal the place. This matters because the serving units show which slices
    requests reached, and ids can be guessed. `S3T(partition="public")` does without a secret, so that others can repeat
    an experiment.

    People who came later may have shards of their own (`S3T(newcomers="append")`): generation 0 is divided into
    `shards` shards, and each later generation adds one shard. A subject's slice within its shard does not depend on the
    generation.

    Args:
        shards: Number of shards, m, of the people who came first.
        slices: Number of slices of a shard, L.
        seed: Seed of the hash's key.
        bands: Number of a shard's slices for each risk band, from the lowest up (`RiskBands`); empty for no bands.
        secret: The store's own secret, which is part of the key, at most 64 bytes; empty for a public partition.
        generations: Number of generations after the first.

    Raises:
        ConfigurationError: A number is out of range, or the bands do not fill the slices.

    Example:
        >>> partition = Partition(shards=5, slices=4, seed=0)
        >>> partition.place("user-17") == partition.place("user-17")
        True
        >>> partition.place("user-17", generation=1).shard
        5
    """

    shards: int
    slices: int
    seed: int = 0
    bands: tuple[int, ...] = ()
    secret: bytes = field(default=b"", repr=False)
    generations: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        for name, value, least in (
            ("shards", self.shards, 1),
            ("slices", self.slices, 1),
            ("seed", self.seed, 0),
            ("generations", self.generations, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"Expected argument `{name}` to be an integer of at least {least} but got {value!r}."
                )

        if self.bands and (sum(self.bands) != self.slices or min(self.bands) < 1):
            raise ConfigurationError(
                f"The bands of risk have {self.bands} slices. Expected at least one slice in each band, {self.slices} "
                "in all."
            )

    @property
    def all_shards(self) -> int:
        """Number of shards in total: those of the first generation and one per later generation."""
        return self.shards + self.generations

    @property
    def settings(self) -> dict[str, Any]:
        """The fixed settings of a store, JSON-ready: all but the secret and the number of generations."""
        kind = "secret" if self.secret else "public"
        return {
            "shards": self.shards,
            "slices": self.slices,
            "seed": self.seed,
            "bands": list(self.bands),
            "kind": kind,
        }

    def shard_of_generation(self, generation: int) -> int:
        """Return the shard that a generation is.

        Args:
            generation: From 1 on: the first, 0, has several.
        """
        return self.shards + generation - 1

    def generation_of(self, shard: int) -> int:
        """Return the generation that a shard belongs to.

        Args:
            shard: Counted from 0.

        Example:
            >>> Partition(shards=5, slices=4).generation_of(4), Partition(shards=5, slices=4).generation_of(5)
            (0, 1)
        """
        return max(shard - self.shards + 1, 0)

    def place(self, subject: str, band: int = 0, generation: int = 0) -> Place:
        """Return a subject's place.

        Args:
            subject: The canonical id.
            band: The subject's band of risk, from 0.
            generation: With whom the subject came, as the store's registry has it.
        """
        return next(self.places([subject], [band], [generation]))

    def places(self, subjects: Iterable[str], bands: Iterable[int], generations: Iterable[int]) -> Iterator[Place]:
        """Return the places of several subjects, in order.

        Args:
            subjects: Their canonical ids.
            bands: Their bands of risk.
            generations: Their generations.
        """
        seed = str(self.seed).encode()
        key = hashlib.blake2b(seed, digest_size=32, key=self.secret, person=b"s3t-partition").digest()
        for subject, band, generation in zip(subjects, bands, generations, strict=True):
            first, slices = sum(self.bands[:band]), self.bands[band] if self.bands else self.slices
            digest = hashlib.blake2b(subject.encode(errors="surrogatepass"), digest_size=16, key=key).digest()
            # 128 bits: the bias of the modulo is below 2**-100
            number = int.from_bytes(digest, "big") % (self.shards * slices)
            shard, slice_ = divmod(number, slices)
            yield Place(self.shard_of_generation(generation) if generation else shard, first + slice_)
