"""An audit: surviving units are trained again elsewhere, without the forgotten subjects, and compared bit by bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_s3t.core.floor import PRETRAINED, FloorPart
from lightning_s3t.engine.lightning_internals import is_deterministic
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.versions import versions
from lightning_s3t.errors import ConfigurationError, RevokedError
from lightning_s3t.executors.audit_report import AuditReport, HeadAudit, UnitAudit
from lightning_s3t.executors.fit_config import FitConfig
from lightning_s3t.executors.fit_store import Base, FitStore, Generations
from lightning_s3t.executors.head_building import HeadBuilder
from lightning_s3t.executors.ranks import on_rank_zero
from lightning_s3t.executors.time_budget import TimeBudget
from lightning_s3t.executors.unit_plan import FitPlan
from lightning_s3t.plan import SliceSequence, UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.heads.floor import check_part
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone


class AuditTarget:
    """The units that an audit rebuilds, in a scratch store.

    Args:
        store: The store that is audited.
        chosen: Number of surviving units to draw, or their names, or "all".
        seed: Seed of the draw.
        scratch: The folder to build them in.

    Attributes:
        chosen: The units to compare.
        units: The units to build: the chosen ones and their ancestors, parents first.

    Raises:
        ConfigurationError: There are no survivors and no floor, or no survivor with a given name; or the method is not
            exact.
    """

    def __init__(self, store: Store, chosen: int | Iterable[str] | Literal["all"], seed: int, scratch: Path) -> None:
        self.store = store
        self.scratch = scratch
        if store.manifest.method.guarantee != "exact":
            raise ConfigurationError(
                f"The method of the store {store.path} is {store.manifest.method.name!r}, which promises "
                f"{store.manifest.method.guarantee!r}: the serving model need not equal one trained without the "
                "forgotten subjects. An audit compares bit for bit, so it works only for stores of exact methods."
            )
        self._alive = store.alive()
        self._heads = {source: state for source, state in store.heads().items() if state.complete}
        floor_alone = not self._alive and PRETRAINED in self._heads and chosen == "all"
        self.chosen = () if floor_alone else _choose(tuple(self._alive), chosen, seed)
        self.units = tuple(dict.fromkeys(ancestor for unit in self.chosen for ancestor in unit.lineage))
        self._report: AuditReport | None = None

    @property
    def report(self) -> AuditReport:
        """The report, after the fit."""
        if self._report is None:
            raise RuntimeError("The report is available only after the fit that rebuilds the units.")
        return self._report

    def compare(self, built: Store, plan: FitPlan, drawn: Base, rows_of_forgotten: int, deterministic: bool) -> None:
        """Compare the rebuilt units with those in the store, for the report.

        Args:
            built: The scratch store.
            plan: The plan of the audit's fit.
            drawn: The head as the script draws it today.
            rows_of_forgotten: Number of rows that were left out.
            deterministic: Whether the same training gives the same bits here.
        """
        keys = {planned.unit: planned.key for planned in plan.build}
        found = tuple(self._compare_unit(unit, built, keys.get(unit)) for unit in self.chosen)
        notes = [*_about_rows(rows_of_forgotten), *_about_head(self.store.load_base() or {}, drawn)]
        if not deterministic:
            notes.append(
                "The hardware is not deterministic here, so a difference does not prove a leak, and small "
                "differences are expected. Audit with Trainer(deterministic=True)."
            )
        if self.store.manifest.isolation == "none":
            notes.append(
                "Units are trained in one process, both in the store and in the audit: data that one unit leaves in "
                "global variables or class attributes may be in both."
            )
        then = [self._alive[unit].provenance.get("versions", {}) for unit in self.chosen]
        now = versions()
        changed = sorted({name for record in then for name in record if record[name] != now.get(name)})
        if changed:
            notes.append(f"Versions have changed since the units were trained: {', '.join(changed)}.")
        self._report = AuditReport(
            str(self.store.path),
            found,
            len(self._alive),
            self.store.count_forgotten(),
            rows_of_forgotten,
            deterministic,
            tuple(notes),
        )

    def complete(self, trainer: pl.Trainer, heads: HeadBuilder | None, fit_store: FitStore, groups: int) -> None:
        """Build the floor and the heads on the chosen units again, and compare them, for the report of every rank.

        Args:
            trainer: The trainer.
            heads: Builds them in the scratch store; None if the audit was not given the floor's arguments.
            fit_store: The scratch store, with the units.
            groups: Number of layer groups.
        """
        if self._heads and heads is not None:
            units = on_rank_zero(trainer, lambda: self._headed(fit_store.opened.store))
            heads.build_floor()
            heads.build_on(units, groups)
            self._report = on_rank_zero(trainer, lambda: self._with_heads(heads, fit_store, units))
        else:
            self._report = on_rank_zero(trainer, self._without_heads)

    def _headed(self, built: Store) -> list[UnitId]:
        there = built.alive()
        return [unit for unit in self.chosen if str(unit) in self._heads and unit in there]

    def _with_heads(self, heads: HeadBuilder, fit_store: FitStore, units: Sequence[UnitId]) -> AuditReport:
        built, as_of = fit_store.opened.store, fit_store.plan.as_of
        found = tuple(self._compare_head(unit, heads, built, as_of) for unit in (None, *units))
        notes = self.report.notes
        if any(head.outcome == "data changed" for head in found) and self.store.status().heads_lack_rows:
            notes = (
                *notes,
                "The closed-form heads do not have the rows of corrected or released people yet. Call fit, which adds "
                "them, and audit again.",
            )
        return replace(self.report, heads=found, notes=notes)

    def _without_heads(self) -> AuditReport:
        if not self._heads:
            return self.report
        note = (
            "Not examined: the store's closed-form heads, because the callback was given no `floor`. Audit with the "
            "same arguments as the fit."
        )
        return replace(self.report, notes=(*self.report.notes, note))

    def check_floor(self, part: FloorPart) -> None:
        """Refuse a floor with other settings than the audited one.

        Args:
            part: The settings of the floor.

        Raises:
            StoreMismatchError: Naming every setting that differs.
        """
        check_part(self._heads, part, str(self.store.path))

    def _compare_head(self, unit: UnitId | None, heads: HeadBuilder, built: Store, as_of: int) -> HeadAudit:
        source = PRETRAINED if unit is None else str(unit)
        kept = self.store.load_head(source)
        if kept is None or self.store.request_number != as_of:
            return HeadAudit(source, "revoked meanwhile")
        if not heads.fits_the_data(self.store, unit):
            return HeadAudit(source, "data changed")
        again = built.load_head(source)
        worst = _worst(kept.to_tensors(), again.to_tensors() if again is not None else {})
        return HeadAudit(source, "equal") if worst is None else HeadAudit(source, "differs", *worst)

    def _compare_unit(self, unit: UnitId, built: Store, key: str | None) -> UnitAudit:
        try:
            kept = self.store.load(unit)
        except RevokedError:
            return UnitAudit(str(unit), "revoked meanwhile")
        if key != self._alive[unit].key:
            return UnitAudit(str(unit), "data changed")
        worst = _worst(kept, built.load(unit))
        return UnitAudit(str(unit), "equal") if worst is None else UnitAudit(str(unit), "differs", *worst)


class AuditStore(FitStore):
    """A scratch store that the audited units are built in, as a fit would.

    Requests to the audited store apply, so that its forgotten subjects are left out here.

    Args:
        target: The audited units.
        trainer: The trainer.
        data: The training data.
        settings: All that may influence a unit besides its rows.
        config: The arguments of S3T.
        options: The notes of a fit.
        key: The audited store's first key, so that all subjects have the same places.
        began_at: The position of the audited store's newest event when the audit began.
        budget: The time limit, which an audit does not have.
    """

    def __init__(
        self,
        target: AuditTarget,
        trainer: pl.Trainer,
        data: TrainingData,
        settings: Mapping[str, Any],
        config: FitConfig,
        options: Mapping[str, Any],
        key: bytes | None,
        began_at: int,
        budget: TimeBudget,
    ) -> None:
        config = replace(config.in_scratch, keep_registry=True)
        super().__init__(trainer, data, settings, config, options, key, began_at, budget)
        self._target = target
        self._drawn: Base = {}

    @property
    def kept_as_of(self) -> int:
        """None of the audited store's requests are in the scratch store."""
        return 0

    def finish(self) -> None:
        """Compare the rebuilt units with the audited ones."""
        forgotten = self._data.left_out - self.restricted
        rows = sum(subject in forgotten for subject in self._data.subjects)
        self._target.compare(self.opened.store, self.plan, self._drawn, rows, is_deterministic(self._trainer))

    def _open(self, path: Path, make_base: Callable[[], Base]) -> tuple[Base, tuple[SliceSequence, ...]]:
        audited = self._target.store
        audited.check(self._settings, whole=True)
        self._check_effect(audited)
        base = audited.load_base()
        if base is None:
            raise ConfigurationError(f"The store {audited.path} does not have the head's initial state. Fit it first.")
        self._drawn = make_base()
        self._enter(self._target.scratch).building.save_base(base)
        return base, self._choice.plan()

    def _register_all(self, bands: Mapping[str, int]) -> tuple[int, Generations]:
        """Look all subjects up in the audited store; new ones would be in its next generation, which is not audited."""
        audited = self._target.store
        count, found = audited.partition.generations, audited.generations_of(bands)
        if self._config.newcomers == "append" and found:
            newcomers = dict.fromkeys(bands.keys() - found.keys(), count + 1)
            return len(newcomers), (count + 1, {**found, **newcomers})
        return 0, (count, found)

    def _due(self) -> Collection[Tombstone]:
        return ()

    def _corrections(self) -> Collection[Mark]:
        return ()

    def _asked(self) -> Store:
        return self._target.store

    def _units(self) -> tuple[UnitId, ...]:
        return self._target.units

    def check_floor(self, part: FloorPart) -> None:
        """Refuse a floor with other settings than the audited one."""
        self._target.check_floor(part)


def _choose(alive: tuple[UnitId, ...], chosen: int | Iterable[str] | Literal["all"], seed: int) -> tuple[UnitId, ...]:
    if not alive:
        raise ConfigurationError(
            "The store has no surviving unit to audit. Fit it first; or audit all, which compares its closed-form head."
        )
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
            f"{', '.join(gone) or 'Nothing'} is not a surviving unit of the store. Expected units among "
            f"{', '.join(map(str, alive[:10]))}{', ...' if len(alive) > 10 else ''}."
        )
    return named


def _about_rows(rows_of_forgotten: int) -> Iterator[str]:
    if rows_of_forgotten:
        yield (
            "Not examined: values that the script computes over all rows before the fit (normalisation, the number "
            "of steps, label frequencies, the head's initial state) include the rows of the forgotten subjects, here "
            "as in the store. To cover them, drop these rows before the audit."
        )


def _about_head(kept: Base, drawn: Base) -> Iterator[str]:
    worst = _worst(kept, drawn)
    if worst is not None:
        yield (
            "Not examined: the head's initial state. The store keeps the one of its first fit, and the script now "
            f"gives another (different by up to {worst[1]:.3g} in {worst[0]}). If it is drawn at random, this is "
            "expected. If it is computed from the data (label frequencies, class prototypes), the stored one "
            "includes the data of the forgotten subjects, and only training into a new folder removes it."
        )


def _worst(kept: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """Return the tensor that differs most, and its largest absolute difference; None if all bits are the same."""
    differences = {
        name: _difference(kept[name], again[name]) if name in kept and name in again else float("inf")
        for name in kept.keys() | again.keys()
    }
    changed = {name: value for name, value in differences.items() if value is not None}
    if not changed:
        return None
    worst = max(sorted(changed), key=changed.__getitem__)
    return worst, changed[worst]


def _difference(one: Tensor, other: Tensor) -> float | None:
    """Return the largest absolute difference; None if all bits are equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)):
        return None
    apart = (one.to(torch.float64) - other.to(torch.float64)).abs()
    return float(apart.nan_to_num(nan=float("inf")).max())
