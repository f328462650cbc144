"""What an audit has found: the outcome of each unit and of each closed-form head."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from lightning_s3t.columns import counted
from lightning_s3t.core.floor import PRETRAINED

Outcome = Literal["equal", "differs", "data changed", "revoked meanwhile"]


@dataclass(frozen=True)
class UnitAudit:
    """The audit result of a unit.

    Attributes:
        unit: Its coordinates.
        outcome: "equal" bit for bit; "differs"; "data changed" since the unit was trained, so that a comparison is not
            possible; "revoked meanwhile".
        tensor: The tensor that differs most.
        difference: The largest absolute difference in it.
    """

    unit: str
    outcome: Outcome
    tensor: str | None = None
    difference: float = 0.0


@dataclass(frozen=True)
class HeadAudit:
    """The audit of a closed-form head: its sums are compared with those over the same rows, read again.

    Attributes:
        source: The network that its features come from: "pretrained" for the floor, or the name of a unit.
        outcome: "equal" (bitwise); "differs"; "data changed" since the head was built, so a comparison is impossible;
            "revoked meanwhile" if a request came in.
        tensor: The sums that differ most.
        difference: Their largest absolute difference.
    """

    source: str
    outcome: Outcome
    tensor: str | None = None
    difference: float = 0.0

    @property
    def name(self) -> str:
        """The head, in words."""
        return "the closed-form head" if self.source == PRETRAINED else f"the head on unit {self.source}"


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        store: The store's folder.
        units: The chosen units, in order.
        survivors: Number of surviving units to choose from.
        forgotten: Number of subjects that the store has forgotten.
        rows_of_forgotten: Number of their rows in the audit's data. The audit trained without them, but values that a
            script computes over all rows before the fit are then not examined.
        deterministic: Whether the same training gives the same bits here: on a CPU, or with `deterministic=True`.
        notes: Possible explanations of differences.
        heads: The floor, and the closed-form heads on the chosen units. Empty if the store has none, or if the audit
            was not given the floor's arguments.
    """

    store: str
    units: tuple[UnitAudit, ...]
    survivors: int
    forgotten: int
    rows_of_forgotten: int
    deterministic: bool
    notes: tuple[str, ...] = ()
    heads: tuple[HeadAudit, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every chosen unit and head that still exists is bitwise equal to the one that was built again.

        This is a training without the forgotten subjects, if the audit's data does not have their rows.
        """
        found_all: tuple[UnitAudit | HeadAudit, ...] = (*self.units, *self.heads)
        compared = [found for found in found_all if found.outcome != "revoked meanwhile"]
        return bool(compared) and all(found.outcome == "equal" for found in compared)

    def to_json(self) -> str:
        """Return the report as a JSON document."""
        return json.dumps({**asdict(self), "passed": self.passed}, indent=2)

    def __str__(self) -> str:
        equal = sum(unit.outcome == "equal" for unit in self.units)
        without = (
            f"on the other rows gives, with data that still has {self.rows_of_forgotten} rows of the forgotten subjects"
            if self.rows_of_forgotten
            else f"without the {counted(self.forgotten, 'forgotten subject')} gives"
        )
        lines = (
            [
                f"{equal} of {counted(len(self.units), 'unit')} {'is' if len(self.units) == 1 else 'are'}, bit for "
                f"bit, what training {without} ({counted(self.survivors, 'unit')} in {self.store} can serve)."
            ]
            if self.units or not self.heads
            else [f"There are no units in {self.store}."]
        )
        for unit in self.units:
            if unit.outcome == "differs":
                lines.append(f"Unit {unit.unit} differs, by up to {unit.difference:.3g} in {unit.tensor}.")
            elif unit.outcome != "equal":
                lines.append(f"Unit {unit.unit}: {unit.outcome}.")
        if self.heads:
            equal = sum(head.outcome == "equal" for head in self.heads)
            lines.append(
                f"The sums of {equal} of {counted(len(self.heads), 'closed-form head')} are, bit for bit, those of the "
                "same rows read again."
            )
        for head in self.heads:
            if head.outcome == "differs":
                lines.append(f"The sums of {head.name} differ, by up to {head.difference:.3g} in {head.tensor!r}.")
            elif head.outcome != "equal":
                lines.append(f"{head.name[0].upper()}{head.name[1:]}: {head.outcome}.")
        return "\n".join([*lines, *self.notes])
