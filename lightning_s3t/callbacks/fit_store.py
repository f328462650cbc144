"""The store as a fit sees it: opened by rank 0, planned at the start, and anew when a deletion request comes in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_s3t.callbacks.audited import Audited, AuditReport
from lightning_s3t.callbacks.found_state import describe_changes
from lightning_s3t.callbacks.ranks import on_rank_zero
from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unit_plan import Digests, FitPlan, plan_fit
from lightning_s3t.plan import DataMode, SequenceChoice, SliceSequence, UnitId, units_of
from lightning_s3t.store import BuildSession, Store
from lightning_s3t.tuning.adapter_effect import check_effect
from lightning_s3t.tuning.fingerprint import digest_tensors

Base = dict[str, Tensor]


class FitStore:
    """Opens a store for a fit, and plans what has to be built.

    Only rank 0 has the store; every rank learns the plan and who is forgotten.

    Args:
        trainer: The trainer, in `on_fit_start`.
        data: The training data.
        settings: All that may influence a unit besides its rows.
        choice: Which orders to train.
        mode: "cumulative" or "disjoint".
        options: What the store notes of the fit beside the orders: the app's config, what the adapters add.
        audited: What to build, if the fit is an audit.
        register: Whether the store notes who is in the training data.

    Attributes:
        store: The store; None on all ranks but 0.
        building: What the fit does to it; None on all ranks but 0.
        plan: What to build.
        start: The head as it stands before any training.
        sequences: The orders.
        digests: The digests of the slices' ids; empty on all ranks but 0.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        data: TrainingData,
        settings: Mapping[str, Any],
        choice: SequenceChoice,
        mode: DataMode,
        options: Mapping[str, Any],
        audited: Audited | None = None,
        register: bool = True,
    ) -> None:
        self.store: Store | None = None
        self.building: BuildSession | None = None
        self.plan = FitPlan((), 0, (), 0)
        self.sequences: tuple[SliceSequence, ...] = ()
        self.start: Base = {}
        self.digests: Digests = {}
        self._trainer = trainer
        self._data = data
        self._settings = settings
        self._choice = choice
        self._mode = mode
        self._options = options
        self._audited = audited
        self._register = register
        self._basis: Mapping[str, Any] = settings
        self._exit = ExitStack()

    def open(self, path: Path, make_base: Callable[[], Base]) -> None:
        """Opens the store, and plans the fit.

        Args:
            path: The store's folder.
            make_base: Gives the head as the script draws it; used by the first fit alone.

        Raises:
            StoreError: The store cannot be used; nothing has changed.
            DataError: A slice is empty, or the rows have changed their order.
        """
        try:
            self.start, self.sequences = on_rank_zero(self._trainer, lambda: self._open(path, make_base))
        except BaseException:
            self.close()
            raise
        self.replan()

    def replan(self) -> None:
        """Looks again who is forgotten and what is there, and plans what is left to build."""
        self.plan, forgotten = on_rank_zero(self._trainer, self._plan)
        self._data.leave_out(forgotten)

    def outdated(self) -> bool:
        """Says, on every rank alike, whether a deletion request has come in since the plan was made."""
        return on_rank_zero(self._trainer, lambda: self._request_number() != self.plan.as_of)

    def clear_attempts(self) -> None:
        """Clears away what units have left that other processes trained and that were cut."""
        if self.building is not None:
            self.building.clear_attempts()

    def report(self, deterministic: bool) -> AuditReport:
        """Compares what an audit has built with what is audited; on rank 0.

        Args:
            deterministic: Whether the same training gives the same bits here.
        """
        assert self._audited is not None
        assert self.store is not None
        return self._audited.compare(self.store, self.plan, len(self._data.forgotten), deterministic)

    def close(self) -> None:
        """Closes the store, and lets other fits in."""
        self._exit.close()

    def _open(self, path: Path, make_base: Callable[[], Base]) -> tuple[Base, tuple[SliceSequence, ...]]:
        # one batch a unit is no training: nothing of it may be kept
        if self._trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = Path(tempfile.mkdtemp(prefix="s3t-fast-dev-run-"))
            self._exit.callback(shutil.rmtree, path, ignore_errors=True)
        if not (path / "ledger.db").exists() and self._audited is None:
            self._data.check_slices()
        if self._audited is not None:
            self._audited.store.check(self._settings, whole=True)
            self._check_effect(self._audited.store)
            path = self._audited.scratch
        self.store = store = self._exit.enter_context(Store.create(path, self._settings, self._register))
        self.building = building = self._exit.enter_context(store.building())
        if self._audited is not None:
            base = self._audited.store.load_base()
            assert base is not None
            building.save_base(base)
            sequences = self._choice.plan()
        else:
            if self._request_number() == 0:
                self._data.check_slices()
            damaged = store.take_out_damaged()
            if damaged:
                rank_zero_warn(
                    f"The snapshots of {', '.join(map(str, damaged[:5]))} were missing or damaged, or built on one "
                    f"that was: {len(damaged)} units are trained anew."
                )
            self._check_effect(store)
            self._compare_found(store)
            kept = store.options["sequences"] if self._same_planner(store) else ()
            sequences = self._choice.plan(keep=kept)
            building.note_options(
                {
                    **self._options,
                    # that of the first fit: small differences must not add up
                    "adapter_effect": store.options.get("adapter_effect", self._options["adapter_effect"]),
                    "sequences": [list(order) for order in sequences],
                    "planner": self._choice.planner,
                }
            )
            base = store.load_base()
            if base is None:
                base = make_base()
                building.save_base(base)
        self._basis = {**self._settings, "head_sha256": digest_tensors(base)}
        return base, sequences

    def _check_effect(self, store: Store) -> None:
        check_effect(store.options.get("adapter_effect"), self._options["adapter_effect"], str(store.path))

    def _compare_found(self, store: Store) -> None:
        before = store.options.get("found")
        changes = describe_changes(before, self._options["found"]) if before is not None else ""
        if changes:
            rank_zero_warn(
                f"The script's objects are not as the last fit into {store.path} found them: {changes}. Units that are "
                "trained now begin from this state, so they may not be those that a first fit gives. If a test or "
                "another fit has moved it in between, fit in a fresh script. (Random generators of the data set and "
                "its collate function do not matter: they are seeded for each unit. Global variables and attributes "
                "of classes are not compared.)"
            )

    def _same_planner(self, store: Store) -> bool:
        # the orders for a larger budget need not begin with those for a smaller one
        planner = self._choice.planner
        return planner is not None and store.options.get("planner") == planner

    def _plan(self) -> tuple[FitPlan, frozenset[str]]:
        assert self.store is not None
        assert self.building is not None
        asked = self._audited.store if self._audited is not None else self.store
        as_of = self._request_number()  # before the look: a request in between must count as newer
        forgotten = frozenset(asked.forgotten(dict.fromkeys(self._data.subjects)))
        self._data.leave_out(forgotten)
        self.building.register(
            {subject: band for subject, band in self._data.bands.items() if subject not in forgotten}
        )
        self.digests = self._data.digests(asked.subject_hash)
        return plan_fit(
            self._units(), self.store.alive(), self._data, self._mode, self.digests, self._basis, as_of
        ), forgotten

    def _units(self) -> tuple[UnitId, ...]:
        if self._audited is not None:
            return self._audited.units
        partition = self._data.partition
        units = units_of(partition.shards, self.sequences)
        return units[: partition.slices] if self._trainer.fast_dev_run else units  # type: ignore[attr-defined]

    def _request_number(self) -> int:
        assert self.store is not None
        return self.store.request_number
