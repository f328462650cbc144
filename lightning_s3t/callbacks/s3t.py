"""The S3T callback: makes a trainer train by slices, into a store that can forget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from peft import PeftConfig

from lightning_s3t.callbacks.arguments import check_arguments, check_choices
from lightning_s3t.callbacks.audited import Audited
from lightning_s3t.callbacks.checks import (
    check_every_optimizer,
    check_not_resumed,
    check_optimizers,
    check_trainer,
)
from lightning_s3t.callbacks.deletion import DeletionHook
from lightning_s3t.callbacks.fit_settings import classes_of, config_of, fit_settings
from lightning_s3t.callbacks.fit_store import FitStore
from lightning_s3t.callbacks.fit_summary import FitSummary, hyperparameters
from lightning_s3t.callbacks.found_state import digest_found
from lightning_s3t.callbacks.in_process_fit import InProcessFit
from lightning_s3t.callbacks.isolation.forkserver import warm_up
from lightning_s3t.callbacks.isolation.isolated_fit import IsolatedFit, check_sendable
from lightning_s3t.callbacks.lightning_internals import (
    hand_back,
    is_compiled,
    is_deterministic,
    is_distributed,
    request_train_dataloader,
    take_over,
)
from lightning_s3t.callbacks.provenance import ProvenanceRecorder
from lightning_s3t.callbacks.rank_zero import on_rank_zero
from lightning_s3t.callbacks.subjects import Subjects, check_order, subjects_of
from lightning_s3t.callbacks.training_data import TrainingData, check_loader
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_settings import Isolation, UnitSettings
from lightning_s3t.callbacks.unit_store import UnitStore
from lightning_s3t.callbacks.unit_training import UnitTraining
from lightning_s3t.plan import DataMode, EpochRule, Partition, RiskBands, SequenceChoice, UnitId
from lightning_s3t.store import Receipt
from lightning_s3t.tuning.adapter_effect import measure_effect
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, describe_adapter
from lightning_s3t.tuning.layer_table import LayerTable
from lightning_s3t.tuning.serving.ensemble import Aggregate


class S3T(pl.Callback):
    """Trains any LightningModule so that data can be removed from it exactly, by deactivating layers.

    The training data is cut into `shards` of `slices` each; every shard fine-tunes the pretrained model with
    adapters, one group of layers a slice, from the top layers down, on `budget` orders of its slices (S3T, Basu Roy
    Chowdhury et al., arXiv 2406.16257). One `trainer.fit` trains every missing unit; what is there is skipped, so an
    interrupted fit, a fit after deletions and a fit with more data are all the same call.

    The script stays as it is: its module, data, optimizers, schedulers, loggers and callbacks serve every unit. The
    module given to `fit` is as it was before when `fit` returns; what was trained is in the store. Serve it with
    `S3TModule.load(store, module)`.

    Args:
        store: The folder that keeps what is trained.
        shards: Number of shards, m.
        slices: Number of slices of a shard, L; also the number of layer groups.
        budget: Number of orders of the slices that each shard is trained on, B; or what they may cost each shard:
            {"units": 40}, or {"fine_tunes": 3.5} in multiples of one full fine-tune. A later fit may raise it: what is
            trained stays, and orders are added.
        sequences: How the orders are chosen: "optimal" (most slices left after the coming requests), "cyclic", "bms",
            "conditional", "random", "all", "sisa", or the orders themselves.
        subjects: Who owns each row: the name of an attribute of the data set that has one id per row, a callable that
            takes the data set and returns them, or its import path; None for the row's index.
        layers: Where the blocks are, if they cannot be found: a path, a list of paths, or a list of groups.
        head: Where the head is, if it cannot be found: a path or a list of paths.
        adapter: A PeftConfig, a dict of one, or None to fine-tune whole layers.
        data: "cumulative" trains stage k on the first k slices of the order, "disjoint" on the k-th alone.
        aggregate: How the shards' answers are put together: "mean_logits", "mean_probabilities" or
            "vote"; or "single", where the best survivor answers alone.
        seed: What the partition and all randomness of the units follow from.
        epochs: "full" trains every stage for the trainer's max_epochs, "sisa" for 2E/(L+1) of them.
        prior: How likely a request is for each slice, for the planners that use it: one probability a slice, or one a
            shard and slice (`lightning_s3t.plan.slice_prior` sums what is known of subjects); None for equal ones.
        risk: Which subjects are likely to ask, so that they share slices: `RiskBands`, or a mapping of its arguments,
            in which `risks` may also be a CSV or JSON file; None to place everybody alike.
        register: Whether the store notes who is in the training data (as keyed hashes). Without, it holds nothing per
            subject, and a request cannot be refused because it names somebody unknown.
        isolation: How units are kept apart. "forkserver": each is trained in a process of its own, which starts from
            what the fit has found. "fork": likewise, forked from the script's process, for what cannot be sent to
            another (a lock, an open file); on a CPU, on one thread. "none": one after the other in the script's
            process, with what is known of set back in between: for several devices, and for debugging. "auto" is
            "forkserver", but "none" with several devices or torch.compile. A store belongs to one of them.
        parallel_units: How many units are trained at the same time on the same device, to the same bits as one after
            another; more is faster where one unit does not keep the device busy.

    Raises:
        ConfigurationError: An argument is out of range; named, with what was expected.

    Example:
        >>> trainer = pl.Trainer(max_epochs=5, logger=False, callbacks=[
        ...     S3T(store="runs/s3t", shards=5, slices=4, budget=4)])
        >>> S3T(store="runs/s3t", shards=0, slices=4, budget=4)
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected argument `shards` to be a positive integer but got 0.
    """

    def __init__(
        self,
        store: str | Path,
        shards: int,
        slices: int,
        budget: int | Mapping[str, float],
        sequences: str | Sequence[Sequence[int]] = "optimal",
        subjects: Subjects = None,
        layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        head: str | Sequence[str] | None = None,
        adapter: PeftConfig | Mapping[str, Any] | None = DEFAULT_ADAPTER,
        data: DataMode = "cumulative",
        aggregate: Literal["mean_logits", "mean_probabilities", "vote", "single"] = "mean_logits",
        seed: int = 0,
        epochs: EpochRule = "full",
        prior: Sequence[float] | Sequence[Sequence[float]] | None = None,
        risk: RiskBands | Mapping[str, Any] | None = None,
        register: bool = True,
        isolation: Literal["auto", "forkserver", "fork", "none"] = "auto",
        parallel_units: int = 1,
    ) -> None:
        check_arguments(shards, slices, budget, seed, parallel_units)
        check_choices(data=data, aggregate=aggregate, epochs=epochs, isolation=isolation)
        self.store = Path(store)
        self.choice = SequenceChoice(sequences, slices, budget, seed, prior, _mode(data), _rule(epochs))
        self.sequences = self.choice.plan()
        self.subjects = subjects
        self.register = register
        self.isolation = isolation
        self.aggregate: Aggregate = aggregate
        self.risk = RiskBands.of(risk)
        self.partition = Partition(shards, slices, seed, self.risk.slices if self.risk is not None else ())
        self.unit_settings = UnitSettings(
            shards, slices, seed, _mode(data), _rule(epochs), parallel_units=parallel_units
        )
        self.unfreezing = SliceUnfreezing(slices, layers=layers, head=head, adapter=adapter, seed=seed)
        self.provenance = ProvenanceRecorder()
        self.deletion = DeletionHook(store)
        self._training: UnitTraining | None = None
        self._fit: IsolatedFit | InProcessFit | None = None
        self._fit_store: FitStore | None = None
        self._audited: Audited | None = None
        self.summary: FitSummary | None = None

    def forget(self, subjects: Iterable[Any], strict: bool = True) -> Receipt:
        """Removes subjects from what the store holds, and tells the trainer's module and callbacks (`on_forget`).

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
        """
        return self.deletion.forget(subjects, strict=strict)

    def register_file(self, path: str | Path) -> None:
        """Notes a file that a callback of the script writes during the running unit, to be erased with the unit.

        Checkpoints are noted without it.

        Args:
            path: The file; call it before the file is written.
        """
        if self._training is not None and self._training.unit is not None:
            self._training.note_file(Path(path).absolute())

    @contextmanager
    def auditing(self, audited: Audited) -> Iterator[None]:
        """Makes a fit within the block an audit: it builds what is audited, elsewhere, and compares.

        Args:
            audited: The store and the units.
        """
        self._audited = audited
        try:
            yield
        finally:
            self._audited = None

    @property
    def current_unit(self) -> UnitId | None:
        """The unit that is being trained; None outside of a fit."""
        return self._training.unit if self._training is not None else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run begins: checks the trainer.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
            stage: "fit", "validate", "test" or "predict".
        """
        if stage == "fit":
            check_trainer(trainer, S3T, self._isolation(trainer), self.unit_settings.parallel_units)
            if self._isolation(trainer) == "forkserver":
                warm_up()
        self.deletion.attach(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when the model and the data are ready: plans what has to be trained.

        Everything that can be refused is refused here, before a store or a module is changed.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        check_not_resumed(trainer)
        check_optimizers(trainer, pl_module)
        data = self._training_data(trainer)
        builder = self.unfreezing.attach(pl_module)
        check_every_optimizer(trainer, pl_module, builder.layers)
        settings = dataclasses.replace(self.unit_settings, isolation=self._isolation(trainer))
        if self._audited is not None:  # one after another, so that it also shows that the order does not matter
            settings = dataclasses.replace(settings, parallel_units=1)
        if settings.isolation == "forkserver":
            check_sendable(trainer, data, self.unfreezing)
        basis = fit_settings(trainer, pl_module, builder, data.loader, self.partition, settings)
        mode, audited = settings.data, self._audited
        options = {
            "aggregate": self.aggregate,
            "config": config_of(trainer),
            "classes": classes_of(trainer),
            "adapter_effect": measure_effect(builder),
            "found": digest_found(trainer, data, (self, *self._parts()), lightnings=False),
        }
        fit_store = FitStore(trainer, data, basis, self.choice, mode, options, audited, self.register)
        self._fit_store = fit_store
        builder.start = fit_store.open(self.store, builder.base_tensors)
        self.sequences, plan = fit_store.sequences, fit_store.plan
        self._training = training = UnitTraining(data, self.unfreezing, self.provenance, settings)
        units = UnitStore(fit_store, data, settings)
        if settings.isolation == "none":
            self._fit = InProcessFit(self, training, units, fit_store, data, self.unfreezing, settings)
        else:
            self._fit = IsolatedFit(training, units, fit_store, settings)
        if plan.impossible:
            rank_zero_warn(
                f"S3T: deletions have emptied slices, so {len(plan.impossible)} units cannot be trained: "
                f"{', '.join(map(str, plan.impossible[:5]))}. The shards serve what is before them."
            )
        rank_zero_info(str(LayerTable.of(builder)))
        rank_zero_info(f"S3T: {len(plan.build)} units to train, {plan.present} are there. Store: {self.store}")
        for logger in trainer.loggers:
            logger.log_hyperparams(self._hyperparameters())
        take_over(trainer, lambda: self._run(trainer), sanity_check=settings.isolation == "none")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when a unit's training begins: starts its provenance.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        self.provenance.begin(trainer, pl_module)
        if self._training is not None and self._training.unit is not None:
            coordinates = _coordinates(self._training.unit.shard, self._training.unit.prefix)
            for logger in trainer.loggers:
                logger.log_metrics(coordinates, step=self._training.first_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch begins: where several processes train together, looks for deletion requests.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        if self._training is None:
            return
        if trainer.current_epoch == 0:
            self._training.seed()
        if is_distributed(trainer):
            self._training.check_alive(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each batch: looks for deletion requests, which cost a few microseconds.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        if self._training is not None and not is_distributed(trainer):
            self._training.check_alive(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch ends: logs the unit's coordinates beside its metrics.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        unit = self.current_unit
        if unit is not None:
            pl_module.log_dict(_coordinates(unit.shard, unit.prefix), on_epoch=True, on_step=False)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Called after each batch: moves the progress display.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
            outputs: What the step returned.
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        if self._training is not None:
            self._training.advance(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Called when a run is broken off: what was committed is safe, the running unit is trained again.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
            exception: Why.
        """
        self._close(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run ends: closes the store.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
            stage: "fit", "validate", "test" or "predict".
        """
        self._close(trainer)

    def _run(self, trainer: pl.Trainer) -> None:
        fit, fit_store = self._fit, self._fit_store
        assert fit is not None
        assert fit_store is not None
        try:
            start = time.monotonic()
            if fit_store.plan.build:
                fit.run(trainer)
            else:
                rank_zero_info(f"S3T: all {fit_store.plan.present} units are there, nothing to train.")
            self._sum_up(fit.trained, time.monotonic() - start)
            if self._audited is not None:
                deterministic = is_deterministic(trainer)
                self._audited.report = on_rank_zero(trainer, lambda: fit_store.report(deterministic))
        finally:
            hand_back(trainer)

    def _parts(self) -> tuple[pl.Callback, ...]:
        return self.unfreezing, self.provenance, self.deletion

    def _isolation(self, trainer: pl.Trainer) -> Isolation:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return "none"  # nothing is kept, and somebody wants to look
        if self.isolation == "auto":
            several = is_distributed(trainer) or is_compiled(trainer.lightning_module)
            return "none" if several else "forkserver"
        return self.isolation

    def __getstate__(self) -> dict[str, Any]:
        # for a unit's process: who owns which row is not its business, and the store is not open there
        left_behind = {"subjects": None, "_fit": None, "_fit_store": None, "_audited": None, "risk": None}
        return {**vars(self), **left_behind}

    def _sum_up(self, trained: Sequence[UnitId], seconds: float) -> None:
        if self._fit_store is None or self._fit_store.store is None:
            return
        alive = self._fit_store.store.alive()
        self.summary = FitSummary.of(alive, self.partition.shards, self.sequences, trained, seconds)
        if trained:
            rank_zero_info(str(self.summary))

    def _hyperparameters(self) -> dict[str, Any]:
        settings, adapter = self.unit_settings, self.unfreezing.adapter
        return hyperparameters(
            {
                "shards": settings.shards,
                "slices": settings.slices,
                "budget": len(self.sequences),
                "sequences": self.choice.sequences if isinstance(self.choice.sequences, str) else "given",
                "adapter": describe_adapter(adapter) if adapter is not None else "whole layers",
                "data": settings.data,
                "epochs": settings.epochs,
                "aggregate": self.aggregate,
                "seed": settings.seed,
                "register": self.register,
                "store": str(self.store),
            }
        )

    def _close(self, trainer: pl.Trainer) -> None:
        hand_back(trainer)
        if self._fit_store is not None:
            self._fit_store.close()
        self._training = self._fit = self._fit_store = None

    def _training_data(self, trainer: pl.Trainer) -> TrainingData:
        data = TrainingData(request_train_dataloader(trainer), self.subjects, self.partition, self.risk)
        if self.subjects is not None:
            again = check_loader(request_train_dataloader(trainer))
            check_order(data.subjects, subjects_of(again.dataset, self.subjects))
        return data


def _mode(data: str) -> DataMode:
    return "cumulative" if data == "cumulative" else "disjoint"


def _rule(epochs: str) -> EpochRule:
    return "full" if epochs == "full" else "sisa"


def _coordinates(shard: int, prefix: Sequence[int]) -> dict[str, float]:
    return {"s3t/shard": float(shard), "s3t/stage": float(len(prefix)), "s3t/slice": float(prefix[-1])}
