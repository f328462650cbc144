"""Cells, units, and the rule that decides which units a deletion request reaches."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from lightning_s3t.errors import ConfigurationError

Cell = str
"""The name of something that data can reach: for S3T a shard and a slice, "0/2"."""


def reaches(requested: Iterable[Cell], influences: Collection[Cell]) -> bool:
    """Return whether a request reaches an artifact: the one rule that decides what is revoked.

    It does if a cell of the request is among the cells of the artifact or of anything that it was made from. A ledger
    answers the same question with an index from cell to artifact (`Ledger.reached`).

    Args:
        requested: The cells that hold the data of the requested subjects.
        influences: The cells of the artifact and of all its ancestors.

    Example:
        >>> reaches(["0/1"], UnitId(0, (2, 1)).cells), reaches(["1/1"], UnitId(0, (2, 1)).cells)
        (True, False)
    """
    return any(cell in influences for cell in requested)


@dataclass(frozen=True, order=True)
class Place:
    """The place of a subject's rows: a cell, as a shard and a slice.

    Attributes:
        shard: Counted from 0.
        slice: Counted from 0, within the shard.

    Example:
        >>> place = Place(0, 2)
        >>> place.cell, Place.parse(place.cell) == place
        ('0/2', True)
    """

    shard: int
    slice: int

    @property
    def cell(self) -> Cell:
        """The cell's name in a ledger."""
        return f"{self.shard}/{self.slice}"

    @classmethod
    def parse(cls, cell: Cell) -> Place:
        """Read the name of a cell.

        Args:
            cell: For example "0/2".

        Raises:
            ConfigurationError: It is not the name of a shard's slice.
        """
        shard, _, slice_ = cell.partition("/")
        if not (shard.isdecimal() and slice_.isdecimal()):
            raise ConfigurationError(f"{cell!r} is not a cell. Expected a shard and a slice, for example '0/2'.")
        return cls(int(shard), int(slice_))


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
    prefix: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.shard < 0 or not self.prefix or len(set(self.prefix)) < len(self.prefix) or min(self.prefix) < 0:
            raise ConfigurationError(
                f"A unit of shard {self.shard} has the prefix {self.prefix}. Expected a shard of 0 or more and at "
                "least one slice, each once, counted from 0."
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
        """All units that it builds on, from the first stage to the unit itself."""
        return tuple(UnitId(self.shard, self.prefix[:stage]) for stage in range(1, self.stage + 1))

    def trained_slices(self, data: Literal["cumulative", "disjoint"]) -> tuple[int, ...]:
        """Return the slices that the unit's stage trains on.

        Args:
            data: "cumulative" for the whole prefix (as in the paper), "disjoint" for its last slice.
        """
        return self.prefix if data == "cumulative" else self.prefix[-1:]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells whose data influenced it: those of its whole prefix, since it builds on its ancestors."""
        return tuple(f"{self.shard}/{slice_}" for slice_ in self.prefix)

    def reached_by(self, place: Place) -> bool:
        """Return whether data at a place has influenced the unit.

        Args:
            place: A shard and a slice.
        """
        return reaches([place.cell], self.cells)

    def __str__(self) -> str:
        return f"{self.shard}/{'-'.join(map(str, self.prefix))}"

    @classmethod
    def parse(cls, text: str) -> UnitId:
        """Read the output of `str`.

        Args:
            text: For example "0/2-0-1".

        Raises:
            ConfigurationError: It is not a unit.

        Example:
            >>> UnitId.parse("0/2-0-1")
            UnitId(shard=0, prefix=(2, 0, 1))
        """
        try:
            shard, prefix = text.split("/")
            return cls(int(shard), tuple(int(part) for part in prefix.split("-")))
        except ValueError as error:
            raise ConfigurationError(
                f"{text!r} is not a unit. Expected a shard and a prefix of slices, for example '0/2-0-1'."
            ) from error
