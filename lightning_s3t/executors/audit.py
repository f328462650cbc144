"""An audit: surviving units, trained anew elsewhere without the forgotten, and compared bit by bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_s3t.columns import counted
from lightning_s3t.engine.lightning_internals import is_deterministic
from lightning_s3t.engine.run_record import versions
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import ConfigurationError, RevokedError
from lightning_s3t.executors.fit_store import Base, FitStore
from lightning_s3t.executors.unit_plan import FitPlan
from lightning_s3t.plan import SequenceChoice, SliceSequence, UnitId
from lightning_s3t.store import Store

Outcome = Literal["equal", "differs", "data changed", "revoked meanwhile"]


@dataclass(frozen=True)
class UnitAudit:
    """What the audit of a unit found.

    Attributes:
        unit: Its coordinates.
        outcome: "equal" to the last bit; "differs"; "data changed" since the unit was trained, so that there is nothing
            to compare it with; "revoked meanwhile".
        tensor: The tensor that differs most.
        difference: The largest absolute difference in it.
    """

    unit: str
    outcome: Outcome
    tensor: str | None = None
    difference: float = 0.0


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        store: The store's folder.
        units: Those that were chosen, in order.
        survivors: How many there were to choose from.
        forgotten: How many of the data's subjects are forgotten, and were left out.
        deterministic: Whether the same training gives the same bits here: on a CPU, or with `deterministic=True`.
        notes: What may explain a difference.
    """

    store: str
    units: tuple[UnitAudit, ...]
    survivors: int
    forgotten: int
    deterministic: bool
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every chosen unit that is still there is, bit for bit, what training without the forgotten gives."""
        compared = [unit for unit in self.units if unit.outcome != "revoked meanwhile"]
        return bool(compared) and all(unit.outcome == "equal" for unit in compared)

    def to_json(self) -> str:
        """Returns the report as a JSON document."""
        return json.dumps({**asdict(self), "passed": self.passed}, indent=2)

    def __str__(self) -> str:
        equal = sum(unit.outcome == "equal" for unit in self.units)
        lines = [
            f"{equal} of {len(self.units)} units are, bit for bit, what training without the "
            f"{counted(self.forgotten, 'forgotten subject')} gives ({self.survivors} units survive in {self.store})."
        ]
        for unit in self.units:
            if unit.outcome == "differs":
                lines.append(f"Unit {unit.unit} differs, by up to {unit.difference:.3g} in {unit.tensor}.")
            elif unit.outcome != "equal":
                lines.append(f"Unit {unit.unit}: {unit.outcome}.")
        return "\n".join([*lines, *self.notes])


class AuditTarget:
    """What an audit builds anew, in a scratch store.

    Args:
        store: The store that is audited.
        chosen: How many surviving units to draw, or their names, or "all".
        seed: What they are drawn from.
        scratch: The folder to build them in.

    Attributes:
        chosen: The units to compare.
        units: The units to build: those and what they stand on, parents before children.
        report: What was found, once the fit is over.

    Raises:
        ConfigurationError: There is no survivor, or none of that name.
    """

    def __init__(self, store: Store, chosen: int | Iterable[str] | Literal["all"], seed: int, scratch: Path) -> None:
        self.store = store
        self.scratch = scratch
        self._alive = store.alive()
        self.chosen = _choose(tuple(self._alive), chosen, seed)
        self.units = tuple(dict.fromkeys(ancestor for unit in self.chosen for ancestor in unit.lineage))
        self.report: AuditReport | None = None

    def compare(self, built: Store, plan: FitPlan, forgotten: int, deterministic: bool) -> None:
        """Compares what was built with what the store holds, for the report.

        Args:
            built: The scratch store.
            plan: What was planned for it.
            forgotten: How many subjects were left out.
            deterministic: Whether the same training gives the same bits here.
        """
        keys = {planned.unit: planned.key for planned in plan.build}
        found = tuple(self._compare_unit(unit, built, keys.get(unit)) for unit in self.chosen)
        notes = []
        if not deterministic:
            notes.append(
                "The hardware is not deterministic here, so that a difference is no proof of a leak, and a small one "
                "is to be expected. Audit with Trainer(deterministic=True)."
            )
        if self.store.manifest.isolation == "none":
            notes.append(
                "Units are trained in one process, in the store as in the audit: what one leaves for another in global "
                "variables or attributes of classes may be in both."
            )
        then = [self._alive[unit].provenance.get("versions", {}) for unit in self.chosen]
        now = versions()
        changed = sorted({name for record in then for name in record if record[name] != now.get(name)})
        if changed:
            notes.append(f"Other versions than when the units were trained: {', '.join(changed)}.")
        survivors, path = len(self._alive), str(self.store.path)
        self.report = AuditReport(path, found, survivors, forgotten, deterministic, tuple(notes))

    def _compare_unit(self, unit: UnitId, built: Store, key: str | None) -> UnitAudit:
        try:
            kept = self.store.load(unit)
        except RevokedError:
            return UnitAudit(str(unit), "revoked meanwhile")
        if key != self._alive[unit].key:
            return UnitAudit(str(unit), "data changed")
        again = built.load(unit)
        differences = {
            name: _difference(kept[name], again[name]) if name in kept and name in again else float("inf")
            for name in kept.keys() | again.keys()
        }
        changed = {name: value for name, value in differences.items() if value is not None}
        if not changed:
            return UnitAudit(str(unit), "equal")
        worst = max(sorted(changed), key=changed.__getitem__)
        return UnitAudit(str(unit), "differs", worst, changed[worst])


class AuditStore(FitStore):
    """A scratch store that the audited units are built in, as a fit would.

    Requests to the audited store count, so that who is forgotten there is left out here.

    Args:
        target: What is audited.
        trainer: The trainer.
        data: The training data.
        settings: All that may influence a unit besides its rows.
        choice: Which sequences to train.
        options: What a fit would note.
    """

    def __init__(
        self,
        target: AuditTarget,
        trainer: pl.Trainer,
        data: TrainingData,
        settings: Mapping[str, Any],
        choice: SequenceChoice,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(trainer, data, settings, choice, options)
        self._target = target

    def finish(self) -> None:
        """Compares what was built with what is audited."""
        deterministic = is_deterministic(self._trainer)
        self._target.compare(self.opened.store, self.plan, len(self._data.forgotten), deterministic)

    def _open(self, path: Path, make_base: Callable[[], Base]) -> tuple[Base, tuple[SliceSequence, ...]]:
        audited = self._target.store
        audited.check(self._settings, whole=True)
        self._check_effect(audited)
        base = audited.load_base()
        if base is None:
            raise ConfigurationError(f"The store {audited.path} has no head to begin with. Fit it first.")
        self._enter(self._target.scratch).building.save_base(base)
        return base, self._choice.plan()

    def _asked(self) -> Store:
        return self._target.store

    def _units(self) -> tuple[UnitId, ...]:
        return self._target.units


def _choose(alive: tuple[UnitId, ...], chosen: int | Iterable[str] | Literal["all"], seed: int) -> tuple[UnitId, ...]:
    if not alive:
        raise ConfigurationError("The store has no surviving unit to audit. Fit it first.")
    if chosen == "all":
        return alive
    if isinstance(chosen, int):
        if isinstance(chosen, bool) or chosen < 1:
            raise ConfigurationError(f"Expected a positive number of units to audit but got {chosen!r}.")
        return tuple(sorted(random.Random(seed).sample(alive, min(chosen, len(alive)))))
    named = tuple(dict.fromkeys(UnitId.parse(name) for name in chosen))
    gone = [str(unit) for unit in named if unit not in alive]
    if gone or not named:
        raise ConfigurationError(
            f"{', '.join(gone) or 'Nothing'} is no surviving unit of the store. Expected one of "
            f"{', '.join(map(str, alive[:10]))}{', ...' if len(alive) > 10 else ''}."
        )
    return named


def _difference(one: Tensor, other: Tensor) -> float | None:
    """Returns the largest absolute difference; None if there is not one bit of it."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if torch.equal(one.contiguous().view(torch.uint8).flatten(), other.contiguous().view(torch.uint8).flatten()):
        return None
    apart = (one.to(torch.float64) - other.to(torch.float64)).abs()
    return float(apart.nan_to_num(nan=float("inf")).max())
