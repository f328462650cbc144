"""The heart of a fit with S3T: Lightning's own fit loop, once per missing unit, each as if it were the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_s3t.callbacks.checkpoint_files import recorded_checkpoints
from lightning_s3t.callbacks.checks import check_optimized
from lightning_s3t.callbacks.fit_store import FitStore
from lightning_s3t.callbacks.lightning_internals import TrainerReset, logged_step, run_fit_loop
from lightning_s3t.callbacks.progress import Progress, UnitProgress
from lightning_s3t.callbacks.provenance import ProvenanceRecorder, score_of
from lightning_s3t.callbacks.quiet import quiet
from lightning_s3t.callbacks.rank_zero import on_rank_zero
from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_plan import PlannedUnit, slice_digests
from lightning_s3t.callbacks.unit_record import describe_unit
from lightning_s3t.callbacks.unit_settings import UnitSettings
from lightning_s3t.errors import DataError, LeakageError, RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Attempt
from lightning_s3t.tuning.fingerprint import digest_tensors
from lightning_s3t.tuning.randomness import seed_all, seeded, unit_seed


class UnitFit:
    """Trains the units of a plan, one after the other.

    Args:
        callback: The S3T callback, which is left as it is between units.
        fit_store: The store, and the plan of what to build.
        data: The training data.
        unfreezing: Puts the stages in place, attached to the module.
        provenance: Records each unit.
        settings: How units are trained.

    Attributes:
        unit: The unit that is being trained, or None.
        first_step: Where the loggers' step axis stood when it began.
        progress: The progress display, while units are trained.
        trained: The units that have been trained.
    """

    def __init__(
        self,
        callback: pl.Callback,
        fit_store: FitStore,
        data: TrainingData,
        unfreezing: SliceUnfreezing,
        provenance: ProvenanceRecorder,
        settings: UnitSettings,
    ) -> None:
        self._callback = callback
        self._fit_store = fit_store
        self._data = data
        self._unfreezing = unfreezing
        self._provenance = provenance
        self._settings = settings
        self._attempt: Attempt | None = None
        self.first_step = 0
        self.progress: Progress | None = None
        self.unit: UnitId | None = None
        self.trained: list[UnitId] = []

    def run(self, trainer: pl.Trainer) -> None:
        """Builds every unit of the plan; takes the place of the trainer's fit loop.

        A deletion request that comes in meanwhile ends the unit that it reaches; what is left is planned anew, without
        who was forgotten.

        Args:
            trainer: The trainer.

        Raises:
            LeakageError: A unit changed what it does not own; it is not kept.
            DataError: A unit trained on no batch.
        """
        plan = self._fit_store.plan
        if not plan.build:
            rank_zero_info(f"S3T: all {plan.present} units are there, nothing to train.")
            return
        with self.prepared(trainer) as reset:
            while not self._build_all(trainer, reset):
                self._fit_store.replan()

    @contextmanager
    def prepared(self, trainer: pl.Trainer) -> Iterator[TrainerReset]:
        """Makes a trainer ready to build units for a block, and leaves it as it was.

        Args:
            trainer: The trainer.
        """
        with ExitStack() as stack:
            stack.enter_context(seeded())
            stack.enter_context(quiet(trainer))
            reset = TrainerReset(trainer, keep=(self._callback,))
            stack.callback(reset.finish)
            stack.callback(self._unfreezing.detach)
            yield reset

    def make_progress(self, trainer: pl.Trainer) -> UnitProgress:
        """Makes a progress display for the plan.

        Args:
            trainer: The trainer.
        """
        build = self._fit_store.plan.build
        return UnitProgress(
            [planned.unit for planned in build],
            [planned.rows for planned in build],
            self._settings.shards,
            self._settings.slices,
            enabled=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )

    def check_alive(self, trainer: pl.Trainer) -> None:
        """Looks whether the running unit has been revoked; every rank must ask at the same time.

        Args:
            trainer: The trainer.

        Raises:
            RevokedError: It has, so that training it any further is of no use.
        """
        if self.unit is not None:
            on_rank_zero(trainer, lambda: self._attempt.check() if self._attempt is not None else None)

    def register_file(self, path: Path) -> None:
        """Notes a file that is written during the running unit, to be erased with it.

        Args:
            path: The file, best before it is written.
        """
        if self._attempt is not None:
            self._attempt.register_file(path)

    def _build_all(self, trainer: pl.Trainer, reset: TrainerReset) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""
        with closing(self.make_progress(trainer)) as self.progress:
            for planned in self._fit_store.plan.build:
                revoked = self.build(trainer, reset, planned)
                if revoked is not None:
                    rank_zero_info(f"S3T: {revoked}")
                if self._fit_store.outdated():
                    return False
        return True

    def build(self, trainer: pl.Trainer, reset: TrainerReset, planned: PlannedUnit) -> RevokedError | None:
        """Builds a unit.

        Args:
            trainer: The trainer.
            reset: Sets it back to where it stood before the first unit.
            planned: The unit, whose parent is in the store.

        Returns:
            None, or why the unit was broken off: a deletion request has reached it.
        """
        unit, seed = planned.unit, unit_seed(self._settings.seed, planned.unit)
        reset.restore()
        trained = on_rank_zero(trainer, lambda: self._start(planned))
        if trained is None:
            return RevokedError(f"Unit {unit} was revoked while the fit ran.")
        assert self.progress is not None
        self.unit, revoked = unit, None
        self.progress.start(unit)
        try:
            with recorded_checkpoints(trainer, self.register_file):
                self._train(trainer, reset, planned, trained, seed)
            stage = self._unfreezing.stage
            assert stage is not None
            tensors = stage.snapshot()
            self._check_ranks(trainer, unit, tensors)
            on_rank_zero(trainer, lambda: self._commit(trainer, planned, tensors))
            self.trained.append(unit)
        except RevokedError as error:
            self._abandon()
            revoked = error
        except BaseException:
            self._abandon()
            raise
        self.first_step = logged_step(trainer)
        self.progress.finish_unit(unit)
        self.unit = None
        return revoked

    def _train(
        self,
        trainer: pl.Trainer,
        reset: TrainerReset,
        planned: PlannedUnit,
        trained: list[dict[str, Tensor]],
        seed: int,
    ) -> None:
        rows = self._data.rows(planned.unit, self._settings.data)
        seed_all(seed)
        self._data.seed_generators(seed)
        loader = self._data.unit_loader(rows, seed, trainer.world_size, trainer.global_rank)
        stage = self._unfreezing.enter(planned.unit.stage, trained, seed)
        reset.prepare(loader, self.first_step, self._settings.max_epochs(trainer.max_epochs))
        self._unfreezing.freeze()
        check_optimized(trainer, stage.trainable)
        self._unfreezing.guard()
        seed_all(seed)
        run_fit_loop(trainer)
        if trainer.global_step == 0:
            raise DataError(
                f"Unit {planned.unit} trained on no batch: {len(rows)} rows, batch size {loader.batch_size}, "
                f"drop_last={loader.drop_last}, max_epochs={trainer.max_epochs}. Expected at least one step: use "
                "fewer shards or slices, a smaller batch, or drop_last=False."
            )
        self._unfreezing.check(f"unit {planned.unit}")

    def _start(self, planned: PlannedUnit) -> list[dict[str, Tensor]] | None:
        store = self._fit_store.store
        assert store is not None
        if planned.stale:
            store.drop([planned.unit])
        try:
            trained = [store.load(ancestor) for ancestor in planned.unit.lineage[:-1]]
            self._attempt = store.start_unit(planned.unit, planned.key, self._fit_store.plan.as_of)
        except RevokedError:
            return None
        return trained

    def _commit(self, trainer: pl.Trainer, planned: PlannedUnit, tensors: dict[str, Tensor]) -> None:
        assert self._attempt is not None
        self._attempt.commit(tensors, self._describe(trainer, planned.unit), score_of(trainer))
        self._attempt = None

    def _abandon(self) -> None:
        if self._attempt is not None:
            self._attempt.abandon()
            self._attempt = None

    def _describe(self, trainer: pl.Trainer, unit: UnitId) -> dict[str, Any]:
        digests = slice_digests(unit, self._settings.data, self._fit_store.digests)
        record = self._provenance.end(trainer)
        return describe_unit(unit, record, self._data, digests, self._unfreezing, self._settings)

    def _check_ranks(self, trainer: pl.Trainer, unit: UnitId, tensors: dict[str, Tensor]) -> None:
        if trainer.world_size == 1:
            return
        mine = digest_tensors(tensors)
        if trainer.strategy.reduce_boolean_decision(mine == trainer.strategy.broadcast(mine), all=True):
            return
        raise LeakageError(
            f"The processes hold different tensors after unit {unit}: their gradients were not synchronised. Expected "
            "the same bits on every rank. Let the strategy synchronise (no torch.no_sync in the step)."
        )
