"""The store of a fit: opened by rank 0, planned at the start, and again when a request arrives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.core.units import Cell, reaches
from lightning_s3t.engine.found_state.found_state import describe_changes
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.executors.fit_config import FitConfig
from lightning_s3t.executors.ranks import on_rank_zero
from lightning_s3t.executors.time_budget import TimeBudget
from lightning_s3t.executors.unit_plan import Digests, FitPlan, PlannedUnit, plan_fit
from lightning_s3t.methods import EditingMethod
from lightning_s3t.plan import SliceSequence, UnitId, order_by_worth, units_of
from lightning_s3t.store import Attempt, BuildSession, RequestRecord, Store
from lightning_s3t.store.disk.scratch import Scratch
from lightning_s3t.store.keys.trusted_configs import trust
from lightning_s3t.store.ledgers.address import has_ledger
from lightning_s3t.store.ledgers.ledger import Mark, Tombstone
from lightning_s3t.tuning.adapter_effect import check_effect
from lightning_s3t.tuning.fingerprint import digest_tensors

Base = dict[str, Tensor]
Generations = tuple[int, Mapping[str, int]]
"""How many generations came after the first, and by subject who came with which."""


@dataclass(frozen=True)
class Opened:
    """Rank 0's handle of a store.

    Attributes:
        store: The store.
        building: The fit's operations on it.
    """

    store: Store
    building: BuildSession


class FitStore:
    """Opens a store for a fit, and plans which units to build.

    Only rank 0 has the store; every rank learns the plan and who is forgotten.

    Args:
        trainer: The trainer, when its setup hooks have run.
        data: The training data.
        settings: All that may influence a unit besides its rows.
        config: The arguments of S3T.
        options: Further notes of the fit in the store: the app's config.
        key: The store's first key, by which the data was placed; on rank 0.
        began_at: The position of the store's newest event when the fit began, before it loaded its data; on rank 0.
        budget: The time limit of the fit.

    Attributes:
        plan: The plan of units to build.
        receipt: Of the requests that have waited for this fit, once they are carried out (of the deletions, if there
            were corrections too); None if there were none.
        start: The head as it stands before any training.
        sequences: The sequences.
        digests: The digests of the slices' ids; empty on all ranks but 0.
        passed_over: Units that could not be trained on the remaining rows, or that have rows that were corrected after
            loading, with the reasons; empty on all ranks but 0.
        restricted: The subjects whose rows are left out until they are released; empty on all ranks but 0.
        budget: The time limit of the fit, which rank 0 checks.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        data: TrainingData,
        settings: Mapping[str, Any],
        config: FitConfig,
        options: Mapping[str, Any],
        key: bytes | None,
        began_at: int,
        budget: TimeBudget,
    ) -> None:
        self.plan = FitPlan((), 0, (), 0)
        self.receipt: RequestRecord | None = None
        self.sequences: tuple[SliceSequence, ...] = ()
        self.start: Base = {}
        self.digests: Digests = {}
        self.passed_over: dict[UnitId, str] = {}
        self.restricted: frozenset[str] = frozenset()
        self._opened: Opened | None = None
        self._trainer = trainer
        self._data = data
        self._settings = settings
        self._config = config
        self._choice = config.choice
        self._method = config.method
        self._options = options
        self._key = key
        self._began_at = began_at
        self.budget = budget
        self._basis: Mapping[str, Any] = settings
        self._moved = ""
        self._exit = ExitStack()

    @property
    def replaces(self) -> bool:
        """Whether units serve until the fit replaces them."""
        return self._method.waits

    @property
    def began_at(self) -> int:
        """The position of the store's newest event when the fit began, before it loaded its data; on rank 0."""
        return self._began_at

    @property
    def kept_as_of(self) -> int:
        """The newest request, when the data was chosen, of the store that units are put into."""
        return self.plan.as_of

    @property
    def opened(self) -> Opened:
        """The store; on rank 0, once `open` has been called."""
        if self._opened is None:
            raise RuntimeError("The store is open only on rank 0, and only during a fit.")
        return self._opened

    def open(self, path: Path, make_base: Callable[[], Base]) -> None:
        """Open the store, and plan the fit.

        Args:
            path: The store's folder.
            make_base: Gives the head as the script draws it; used by the first fit alone.

        Raises:
            StoreError: The store cannot be used; nothing has changed.
            DataError: A slice is empty, or the rows have changed their order.
        """
        try:
            self.start, self.sequences = on_rank_zero(self._trainer, lambda: self._open(path, make_base))
            self._basis = {**self._settings, "head_sha256": digest_tensors(self.start)}
        except BaseException:
            self.close()
            raise
        self.replan()

    def check_floor(self, part: FloorPart) -> None:
        """Raise an error for a floor whose settings differ from those of the store's floor.

        Args:
            part: The wanted settings of the floor.

        Raises:
            StoreMismatchError: Naming every setting that differs.
        """
        on_rank_zero(self._trainer, lambda: self.opened.building.check_floor(part))

    def replan(self) -> None:
        """Read the forgotten subjects and existing units again, and plan the remaining units."""
        self.plan, left_out, generations = on_rank_zero(self._trainer, self._plan)
        self._data.join_generations(*generations)
        self._data.leave_out(left_out)

    def outdated(self) -> bool:
        """Return, identically on every rank, whether a deletion request has arrived since the plan was made."""
        return on_rank_zero(self._trainer, lambda: self._asked().request_number != self.plan.as_of)

    def has_time_for(self, planned: PlannedUnit) -> bool:
        """Return, identically on every rank, whether to start a unit in the remaining time of the fit.

        Args:
            planned: The unit.
        """
        if self.budget.seconds is None:
            return True
        return on_rank_zero(self._trainer, lambda: self.budget.has_time_for(planned))

    def replace(
        self,
        attempt: Attempt,
        tensors: Mapping[str, Tensor],
        record: Mapping[str, Any],
        score: float | None,
    ) -> None:
        """Replace a unit with another, and carry out the requests that waited for it.

        Args:
            attempt: The unit.
            tensors: Its tensors.
            record: Its provenance.
            score: The metric that the script monitors.

        Raises:
            RevokedError: The unit must not be kept.
        """
        plan = self.plan
        self.receipt = self.opened.building.replace(attempt, tensors, record, score, plan.due, plan.corrections)

    def clear_attempts(self) -> None:
        """Clean up after interrupted units of other processes."""
        if self._opened is not None:
            self._opened.building.clear_attempts()

    def note_found(self, found: Mapping[str, Any]) -> None:
        """Record this fit's findings in the data, for `s3t store status`; on rank 0.

        Args:
            found: JSON-ready.
        """
        opened = self.opened
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        last = {"at": now, **found, "other_state": self._moved, **self._count_left_out()}
        opened.building.note_options({**opened.store.options, "last_fit": last})

    def finish(self) -> None:
        """Called on rank 0 when all units exist: carries out waiting requests that changed nothing."""
        plan = self.plan
        if plan.carries_out and not plan.build:
            kept = next(iter(self._units()), None) if plan.present else None
            self.receipt = self.opened.building.carry_out(plan.due, kept, plan.corrections)

    def _count_left_out(self) -> dict[str, int]:
        return {"forgotten": len(self._data.left_out - self.restricted), "restricted": len(self.restricted)}

    def close(self) -> None:
        """Close the store, and release it for other fits."""
        self._exit.close()

    def _open(self, path: Path, make_base: Callable[[], Base]) -> tuple[Base, tuple[SliceSequence, ...]]:
        # one batch per unit is not training: nothing of it may be kept
        if self._trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = self._exit.enter_context(closing(Scratch(path))).path / "store"
            self._config = self._config.in_scratch
        if not has_ledger(path):
            self._data.check_slices()
        opened = self._enter(path)
        store, building = opened.store, opened.building
        if store.request_number == 0:
            self._data.check_slices()
        damaged = store.take_out_damaged()
        if damaged:
            rank_zero_warn(
                f"The snapshots of {', '.join(map(str, damaged[:5]))} were missing or damaged, or built on a missing "
                f"or damaged one: {len(damaged)} units are trained again."
            )
        self._check_effect(store)
        self._compare_found(store)
        kept = store.options["sequences"] if self._same_planner(store) else ()
        sequences = self._choice.plan(keep=kept)
        options = {
            **self._options,
            # that of the first fit: small differences must not add up
            "adapter_effect": store.options.get("adapter_effect", self._options["adapter_effect"]),
            "sequences": [list(sequence) for sequence in sequences],
            "planner": self._choice.planner,
        }
        building.note_options(options)
        if options.get("config") is not None:  # it runs already
            trust(options)
        base = store.load_base()
        if base is None:
            base = make_base()
            building.save_base(base)
        return base, sequences

    def _enter(self, path: Path) -> Opened:
        config = self._config
        store = self._exit.enter_context(
            Store.create(
                path, self._settings, config.keep_registry, self._key, config.ledger, config.snapshots, config.keys
            )
        )
        self._opened = Opened(store, self._exit.enter_context(store.building()))
        return self._opened

    def _check_effect(self, store: Store) -> None:
        check_effect(store.options.get("adapter_effect"), self._options["adapter_effect"], str(store.path))

    def _compare_found(self, store: Store) -> None:
        before = store.options.get("found")
        self._moved = changes = describe_changes(before, self._options["found"]) if before is not None else ""
        if changes:
            rank_zero_warn(
                f"The script's objects differ from what the last fit into {store.path} found: {changes}. Units "
                "trained now start from this state, so they may differ from those of a first fit. If a test or "
                "another fit has changed it in between, fit in a fresh script. (Random generators of the data set "
                "and its collate function do not matter: they are seeded for each unit. Global variables and class "
                "attributes are not compared.)"
            )

    def _same_planner(self, store: Store) -> bool:
        # the sequences for a larger budget need not include those for a smaller one
        planner = self._choice.planner
        return planner is not None and store.options.get("planner") == planner

    def _plan(self) -> tuple[FitPlan, frozenset[str], Generations]:
        asked = self._asked()
        as_of = asked.request_number  # before reading: a request in between must count as newer
        subjects = dict.fromkeys(self._data.subjects)
        due = tuple(self._due())
        forgotten = frozenset(asked.forgotten(subjects))
        leaving = frozenset(asked.among(due, subjects)) - forgotten if due else frozenset()
        corrections = tuple(self._corrections())
        # corrected rows require training from scratch: an edit would start from the old rows
        editable = self._units_to_edit(forgotten, as_of) if leaving and not corrections else frozenset()
        self.restricted = frozenset(asked.restricted(subjects))
        left_out = forgotten | leaving | self.restricted
        newcomers, generations = self._register_all(
            {subject: band for subject, band in self._data.bands.items() if subject not in left_out}
        )
        self._data.join_generations(*generations)
        self._data.leave_out(left_out)
        plan = self._compare(as_of, {mark.cell for mark in corrections})
        edits = tuple(self._data.rows_of(leaving)) if editable else ()
        build = tuple(
            dataclasses.replace(planned, forget_rows=edits) if planned.unit in editable else planned
            for planned in plan.build
        )
        self._pass_over(plan.outdated)
        plan = dataclasses.replace(plan, build=build, due=due, corrections=corrections, newcomers=newcomers)
        return plan, left_out, generations

    def _register_all(self, bands: Mapping[str, int]) -> tuple[int, Generations]:
        """Register the subjects of the data; return the number of new ones, and the generations of all."""
        store, building = self.opened.store, self.opened.building
        newcomers = building.register(bands, self._config.newcomers)
        count = store.partition.generations
        return newcomers, (count, store.generations_of(bands) if count else {})

    def _compare(self, as_of: int, renewed: Collection[Cell] = ()) -> FitPlan:
        """Compare the wanted units, for the data that is not left out, with the existing ones.

        Units with data of renewed cells count as missing.
        """
        self.digests = self._data.digests(self._asked().subject_hashes)
        alive = self.opened.store.alive()
        if renewed:
            alive = {unit: found for unit, found in alive.items() if not reaches(renewed, unit.cells)}
        corrected = self._asked().corrected_since(self._began_at)
        if corrected:  # who was restricted before they were registered may be at another place by now
            moved = self._asked().corrected_among(dict.fromkeys(self._data.subjects), self._began_at)
            corrected |= self._data.cells_of(moved)
        mode, basis = self._choice.data, self._basis
        plan = plan_fit(self._units(), alive, self._data, mode, self.digests, basis, as_of, corrected)
        return dataclasses.replace(plan, build=self._in_order(plan))

    def _pass_over(self, outdated: Collection[UnitId]) -> None:
        new = [unit for unit in outdated if unit not in self.passed_over]
        if new:
            self.passed_over |= dict.fromkeys(new, "some of its rows were corrected after this fit had loaded them")
            rank_zero_warn(
                f"S3T: rows were corrected after this fit had loaded its data, so {len(new)} units with these rows "
                f"are not trained: {', '.join(map(str, new[:5]))}. Fit again, on the corrected data, to train them."
            )

    def _in_order(self, plan: FitPlan) -> tuple[PlannedUnit, ...]:
        """Return the units to build in the order that all executors follow."""
        planned = {one.unit: one for one in plan.build}
        there = [unit for unit in self._units() if unit not in planned and unit not in plan.impossible]
        choice = self._choice
        order = order_by_worth(planned, there, choice.slices, choice.data, choice.epochs, self._method.groups)
        return tuple(planned[unit] for unit in order)

    def _units_to_edit(self, forgotten: frozenset[str], as_of: int) -> frozenset[UnitId]:
        """Return the units with exactly the current data, apart from subjects who ask now to be forgotten."""
        if not isinstance(self._method, EditingMethod):
            return frozenset()
        self._data.leave_out(forgotten)
        plan = self._compare(as_of)
        missing = {planned.unit for planned in plan.build}.union(plan.impossible)
        return frozenset(unit for unit in self._units() if unit not in missing)

    def _due(self) -> Collection[Tombstone]:
        """Return the subjects for this fit to forget."""
        return self.opened.store.due() if self.replaces else ()

    def _corrections(self) -> Collection[Mark]:
        """Return the subjects whose data was corrected before this fit loaded it, and is trained on again."""
        return [mark for mark in self.opened.store.corrections() if mark.number <= self._began_at]

    def _asked(self) -> Store:
        """Return the store whose requests apply."""
        return self.opened.store

    def _units(self) -> tuple[UnitId, ...]:
        partition = self._data.partition
        units = units_of(partition.all_shards, self.sequences)
        return units[: partition.slices] if self._trainer.fast_dev_run else units  # type: ignore[attr-defined]
