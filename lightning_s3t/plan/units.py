"""Units: the smallest trained things, one for each shard and prefix of a sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.partition import Place
from lightning_s3t.plan.stage_rules import DataMode

SliceSequence = tuple[int, ...]


@dataclass(frozen=True, order=True)
class UnitId:
    """A shard and a prefix of a sequence of its slices.

    Attributes:
        shard: Counted from 0.
        prefix: The slices trained so far, in order; distinct, at least one.

    Example:
        >>> unit = UnitId(0, (2, 0, 1))
        >>> str(unit), unit.stage, str(unit.parent)
        ('0/2-0-1', 3, '0/2-0')
        >>> [str(ancestor) for ancestor in unit.lineage]
        ['0/2', '0/2-0', '0/2-0-1']
    """

    shard: int
    prefix: SliceSequence

    def __post_init__(self) -> None:
        if self.shard < 0 or not self.prefix or len(set(self.prefix)) < len(self.prefix) or min(self.prefix) < 0:
            raise ConfigurationError(
                f"A unit of shard {self.shard} has the prefix {self.prefix}. Expected a shard from 0 on and at least "
                "one slice, each once, counted from 0."
            )

    @property
    def stage(self) -> int:
        """The stage that trained it, from 1; also the layer group that it owns."""
        return len(self.prefix)

    @property
    def parent(self) -> UnitId | None:
        """The unit that it was trained on top of; None at stage 1."""
        return UnitId(self.shard, self.prefix[:-1]) if self.stage > 1 else None

    @property
    def lineage(self) -> tuple[UnitId, ...]:
        """All units that it is built of, the first stage's first and itself last."""
        return tuple(UnitId(self.shard, self.prefix[:stage]) for stage in range(1, self.stage + 1))

    def trained_slices(self, data: DataMode) -> SliceSequence:
        """Returns the slices that its stage trains on.

        Args:
            data: "cumulative" for the whole prefix (the paper's), "disjoint" for its last slice.
        """
        return self.prefix if data == "cumulative" else self.prefix[-1:]

    def reached_by(self, place: Place) -> bool:
        """Says whether data at a place has influenced the unit.

        Args:
            place: A shard and a slice.
        """
        return place.shard == self.shard and place.slice in self.prefix

    def __str__(self) -> str:
        return f"{self.shard}/{'-'.join(map(str, self.prefix))}"

    @classmethod
    def parse(cls, text: str) -> UnitId:
        """Reads what `str` has written.

        Args:
            text: For example "0/2-0-1".

        Raises:
            ConfigurationError: It is no unit.

        Example:
            >>> UnitId.parse("0/2-0-1")
            UnitId(shard=0, prefix=(2, 0, 1))
        """
        try:
            shard, prefix = text.split("/")
            return cls(int(shard), tuple(int(part) for part in prefix.split("-")))
        except ValueError as error:
            raise ConfigurationError(
                f"{text!r} is no unit. Expected a shard and a prefix of slices, for example '0/2-0-1'."
            ) from error


def units_of(shards: int, sequences: Iterable[SliceSequence]) -> tuple[UnitId, ...]:
    """Returns every unit that training these sequences takes, in the order to train them.

    Sequences with a common prefix share units. The order is sequence by sequence, so that every shard can serve as
    early as possible; a parent always stands before its children.

    Args:
        shards: Number of shards.
        sequences: Orders of the slices.

    Example:
        >>> [str(unit) for unit in units_of(1, [(0, 1, 2), (0, 2, 1)])]
        ['0/0', '0/0-1', '0/0-1-2', '0/0-2', '0/0-2-1']
    """
    found: dict[UnitId, None] = {}
    for sequence in sequences:
        for shard in range(shards):
            found.update(dict.fromkeys(UnitId(shard, tuple(sequence)).lineage))
    return tuple(found)
