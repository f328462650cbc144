"""The S3T callback: makes a trainer train by slices, into a store that can forget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from peft import PeftConfig

from lightning_s3t.callbacks.deletion import DeletionHook
from lightning_s3t.engine.fit_settings import classes_of, config_of, fit_settings
from lightning_s3t.engine.found_state.found_state import digest_found
from lightning_s3t.engine.lightning_internals import (
    hand_back,
    is_compiled,
    is_distributed,
    log_hyperparameters,
    request_train_dataloader,
    run_instead_of_fit,
    starts_ranks_as_scripts,
    take_over,
)
from lightning_s3t.engine.muted_lightning import warned_once
from lightning_s3t.engine.preflight import (
    check_every_optimizer,
    check_not_resumed,
    check_optimizers,
    check_trainer,
)
from lightning_s3t.engine.run_record import trainer_settings
from lightning_s3t.engine.subjects import Subjects, check_order, subjects_of
from lightning_s3t.engine.training_data import TrainingData, check_loader
from lightning_s3t.engine.unit_settings import Isolation, UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.executors.audit import AuditStore, AuditTarget
from lightning_s3t.executors.distributed import DistributedExecutor
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.fit_summary import FitSummary, hyperparameters, mean_metrics
from lightning_s3t.executors.in_process import InProcessExecutor
from lightning_s3t.executors.isolated import IsolatedExecutor
from lightning_s3t.executors.processes.forkserver import warm_up
from lightning_s3t.executors.ranks import on_rank_zero
from lightning_s3t.executors.unit_store import UnitStore
from lightning_s3t.plan import DataMode, EpochRule, Partition, RiskBands, SequenceChoice, UnitId
from lightning_s3t.serving import EnsemblePredictor
from lightning_s3t.store import Receipt
from lightning_s3t.tuning.adapter_effect import measure_effect
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, describe_adapter, resolve_adapter
from lightning_s3t.tuning.layer_table import LayerTable
from lightning_s3t.tuning.stage_switch import StageSwitch
from lightning_s3t.tuning.stages import StageBuilder

_CHOICES: dict[str, tuple[str, ...]] = {
    "stage_data": ("cumulative", "disjoint"),
    "epoch_rule": ("full", "sisa"),
    "isolation": ("auto", "forkserver", "fork", "none"),
}


class S3T(pl.Callback):
    """Trains any LightningModule so that data can be removed from it exactly, by deactivating layers.

    The training data is cut into `shards` of `slices` each; every shard fine-tunes the pretrained model with
    adapters, one group of layers a slice, from the top layers down, on `budget` sequences of its slices (S3T, Basu Roy
    Chowdhury et al., arXiv 2406.16257). One `trainer.fit` trains every missing unit; what is there is skipped, so an
    interrupted fit, a fit after deletions and a fit with more data are all the same call.

    The script stays as it is: its module, data, optimizers, schedulers, loggers and callbacks serve every unit. The
    module given to `fit` is as it was before when `fit` returns; what was trained is in the store. Serve it with
    `EnsembleModule.from_store(store, module)`.

    Args:
        store: The folder that keeps what is trained.
        shards: Number of shards, m.
        slices: Number of slices of a shard, L; also the number of layer groups.
        budget: Number of sequences of the slices that each shard is trained on, B; or what they may cost each shard:
            {"units": 40}, or {"fine_tunes": 3.5} in multiples of one full fine-tune. A later fit may raise it: what is
            trained stays, and sequences are added.
        subjects: Who owns each row: the name of an attribute of the data set that has one id per row, a callable that
            takes the data set and returns them, or its import path. "index" takes each row's number in the data set:
            a row that is left out later gives all that follow it another id.
        sequences: How the sequences are chosen: "optimal" (most slices left after the coming requests), "cyclic",
            "bms", "conditional", "random", "all", "sisa", or the sequences themselves.
        layers: Where the blocks are, if they cannot be found: a path, a list of paths, or a list of groups.
        head: Where the head is, if it cannot be found: a path or a list of paths.
        adapter: A PeftConfig, a dict of one, or None to fine-tune whole layers.
        stage_data: "cumulative" trains stage k on the first k slices of the sequence, "disjoint" on the k-th alone.
        seed: What the partition and all randomness of the units follow from.
        epoch_rule: "full" trains every stage for the trainer's max_epochs, "sisa" for 2E/(L+1) of them.
        request_prior: How likely a request is for each slice, for the planners that use it: one probability a slice,
            or one a shard and slice (`lightning_s3t.plan.slice_prior` sums what is known of subjects); None for equal
            ones.
        risk_bands: Which subjects are likely to ask, so that they share slices: `RiskBands`, or a mapping of its
            arguments, in which `risks` may also be a CSV or JSON file; None to place all alike.
        keep_registry: Whether the store notes who is in the training data (as keyed hashes). Without, it holds nothing
            per subject, and cannot refuse a request because it names an unknown subject.
        isolation: How units are kept apart. "forkserver": each is trained in a process of its own, which starts from
            what the fit has found. "fork": likewise, forked from the script's process, for what cannot be sent to
            another (a lock, an open file); on a CPU, on one thread. "none": one after the other in the script's
            process, with what is known of set back in between: for debugging. "auto" is "forkserver", but "none" with
            torch.compile and with strategies that spawn or fork their ranks. A store belongs to one of them.
        parallel_units: How many units are trained at the same time on the same device, to the same bits as one after
            another; more is faster where one unit does not keep the device busy.

    Raises:
        ConfigurationError: An argument is out of range; named, with what was expected.

    Example:
        >>> trainer = pl.Trainer(max_epochs=5, logger=False, callbacks=[
        ...     S3T("runs/s3t", shards=5, slices=4, budget=4, subjects="owners")])
        >>> S3T("runs/s3t", shards=0, slices=4, budget=4, subjects="owners")
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
        *,
        subjects: Subjects,
        sequences: str | Sequence[Sequence[int]] = "optimal",
        layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        head: str | Sequence[str] | None = None,
        adapter: PeftConfig | Mapping[str, Any] | None = DEFAULT_ADAPTER,
        stage_data: DataMode = "cumulative",
        epoch_rule: EpochRule = "full",
        seed: int = 0,
        request_prior: Sequence[float] | Sequence[Sequence[float]] | None = None,
        risk_bands: RiskBands | Mapping[str, Any] | None = None,
        keep_registry: bool = True,
        isolation: Literal["auto", "forkserver", "fork", "none"] = "auto",
        parallel_units: int = 1,
    ) -> None:
        _check_numbers(shards, slices, budget, seed, parallel_units)
        _check_choices(stage_data=stage_data, epoch_rule=epoch_rule, isolation=isolation)
        self.store = Path(store)
        self.choice = SequenceChoice(sequences, slices, budget, seed, request_prior, stage_data, epoch_rule)
        self.sequences = self.choice.plan()
        self.subjects = subjects
        self.keep_registry = keep_registry
        self.isolation = isolation
        self.risk_bands = RiskBands.of(risk_bands)
        self.partition = Partition(shards, slices, seed, self.risk_bands.slices if self.risk_bands is not None else ())
        self.unit_settings = UnitSettings(shards, slices, seed, stage_data, epoch_rule, parallel_units=parallel_units)
        self.layers = layers
        self.head = head
        self.adapter = resolve_adapter(adapter)
        self.deletion = DeletionHook(store)
        self._training: UnitTraining | None = None
        self._fit_store: FitStore | None = None
        self._audited: AuditTarget | None = None
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
    def auditing(self, audited: AuditTarget) -> Iterator[None]:
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
        if self._in_unit_process:
            return
        if stage == "fit":
            isolation = self._isolation(trainer)
            check_trainer(trainer, S3T, isolation, self.unit_settings.parallel_units)
            if isolation == "forkserver":
                warm_up()
            if isolation != "none":
                run_instead_of_fit(trainer, lambda: self._fit_isolated(trainer, pl_module))
        elif self.summary is not None and not isinstance(pl_module, EnsemblePredictor):
            rank_zero_warn(
                f"trainer.{stage} was given {type(pl_module).__name__} as it was before the fit: S3T leaves the module "
                f"as it is. What was trained is in {self.store}: use EnsembleModule.from_store({str(self.store)!r}, "
                "model)."
            )
        self.deletion.attach(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when the strategy is set up: where units are not isolated, plans what has to be trained.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        if self._in_unit_process:
            assert self._training is not None
            self._training.on_fit_start(trainer)
        else:
            self._fit_in_process(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when a unit's training begins: starts to watch it.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        if self._training is None:
            return
        self._training.on_train_start(trainer)
        if self._training.unit is not None:
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
            several = is_distributed(trainer)
            pl_module.log_dict(_coordinates(unit.shard, unit.prefix), on_epoch=True, on_step=False, sync_dist=several)

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

    def _fit_isolated(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Fits with every unit in a process of its own. Everything that can be refused is, before anything changes."""
        check_not_resumed(trainer)
        data = self._training_data(trainer)
        switch = self._switch(module)
        settings = self._settings(trainer)
        self._training = UnitTraining(data, switch, settings)
        kind = DistributedExecutor if is_distributed(trainer) else IsolatedExecutor
        with warned_once(), closing(kind(trainer, data, self._training, settings)) as fit:
            basis = fit_settings(fit.rehearse(), module, switch.builder, data.loader, self.partition, settings)
            fit_store = self._open_store(trainer, data, switch.builder, basis)
            units = UnitStore(fit_store, data, settings)
            log_hyperparameters(trainer)
            self._build(trainer, fit_store, fit.trained, lambda: fit.run(units, fit_store))

    def _fit_in_process(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Has the trainer train all units in this process, in the place of its fit loop."""
        check_not_resumed(trainer)
        check_optimizers(trainer, module)
        data = self._training_data(trainer)
        switch = self._switch(module)
        check_every_optimizer(trainer, module, switch.builder.layers)
        settings = self._settings(trainer)
        basis = fit_settings(trainer_settings(trainer), module, switch.builder, data.loader, self.partition, settings)
        fit_store = self._open_store(trainer, data, switch.builder, basis)
        self._training = UnitTraining(data, switch, settings)
        units = UnitStore(fit_store, data, settings)
        fit = InProcessExecutor(self, self._training, units, fit_store, data, switch, settings)
        take_over(trainer, lambda: self._build(trainer, fit_store, fit.trained, lambda: fit.run(trainer)))

    def _open_store(
        self, trainer: pl.Trainer, data: TrainingData, builder: StageBuilder, basis: Mapping[str, Any]
    ) -> FitStore:
        options = {
            "config": config_of(trainer),
            "classes": classes_of(trainer),
            "adapter_effect": measure_effect(builder),
            "found": digest_found(trainer, data, (self, self.deletion), lightnings=False),
        }
        fit_store = (
            AuditStore(self._audited, trainer, data, basis, self.choice, options)
            if self._audited is not None
            else FitStore(trainer, data, basis, self.choice, options, self.keep_registry)
        )
        self._fit_store = fit_store
        fit_store.open(self.store, builder.base_tensors)
        self.sequences, plan = fit_store.sequences, fit_store.plan
        if plan.impossible:
            rank_zero_warn(
                f"S3T: deletions have emptied slices, so {len(plan.impossible)} units cannot be trained: "
                f"{', '.join(map(str, plan.impossible[:5]))}. The shards serve what is before them."
            )
        rank_zero_info(str(LayerTable.of(builder)))
        rank_zero_info(f"S3T: {len(plan.build)} units to train, {plan.present} are there. Store: {self.store}")
        for logger in trainer.loggers:
            logger.log_hyperparams(self._hyperparameters())
        return fit_store

    def _build(
        self, trainer: pl.Trainer, fit_store: FitStore, trained: Sequence[UnitId], run: Callable[[], None]
    ) -> None:
        start = time.monotonic()
        if fit_store.plan.build:
            run()
        else:
            rank_zero_info(f"S3T: all {fit_store.plan.present} units are there, nothing to train.")
        seconds = time.monotonic() - start
        metrics = on_rank_zero(trainer, lambda: self._sum_up(fit_store, trained, seconds))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        on_rank_zero(trainer, fit_store.finish)

    def _settings(self, trainer: pl.Trainer) -> UnitSettings:
        settings = dataclasses.replace(self.unit_settings, isolation=self._isolation(trainer))
        if self._audited is not None:  # one after another, so that it also shows that the order does not matter
            settings = dataclasses.replace(settings, parallel_units=1)
        return settings

    @property
    def _in_unit_process(self) -> bool:
        return self._training is not None and self._training.in_own_process

    def _switch(self, module: pl.LightningModule) -> StageSwitch:
        return StageSwitch(module, self.unit_settings.slices, self.layers, self.head, self.adapter)

    def _isolation(self, trainer: pl.Trainer) -> Isolation:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return "none"  # nothing is kept, and somebody wants to look
        if self.isolation == "auto":
            forked = is_distributed(trainer) and not starts_ranks_as_scripts(trainer)
            return "none" if forked or is_compiled(trainer.lightning_module) else "forkserver"
        return self.isolation

    def __getstate__(self) -> dict[str, Any]:
        # for a unit's process: who owns which row is not its business, and the store is not open there
        left_behind = {"subjects": "index", "_fit_store": None, "_audited": None, "risk_bands": None}
        return {**vars(self), **left_behind}

    def _sum_up(self, fit_store: FitStore, trained: Sequence[UnitId], seconds: float) -> dict[str, float]:
        """Sums a fit up; returns the metrics of the units that serve, each the mean over the shards."""
        store = fit_store.opened.store
        self.summary = FitSummary.of(store.alive(), self.partition.shards, self.sequences, trained, seconds)
        if trained:
            rank_zero_info(str(self.summary))
        if self._audited is None:
            rank_zero_info(
                f"S3T: what was trained is in {self.store}; the module is as it was. "
                f"EnsembleModule.from_store({str(self.store)!r}, model) serves it."
            )
        serving = [row.serves for row in self.summary.rows if row.serves is not None]
        return mean_metrics([store.provenance(unit)[0].get("metrics", {}) for unit in serving])

    def _hyperparameters(self) -> dict[str, Any]:
        settings, adapter = self.unit_settings, self.adapter
        return hyperparameters(
            {
                "shards": settings.shards,
                "slices": settings.slices,
                "budget": len(self.sequences),
                "sequences": self.choice.sequences if isinstance(self.choice.sequences, str) else "given",
                "adapter": describe_adapter(adapter) if adapter is not None else "whole layers",
                "stage_data": settings.data,
                "epoch_rule": settings.epochs,
                "seed": settings.seed,
                "keep_registry": self.keep_registry,
                "store": str(self.store),
            }
        )

    def _close(self, trainer: pl.Trainer) -> None:
        if self._in_unit_process:  # the store is the script's, and a forked process must not give its lock back
            return
        hand_back(trainer)
        if self._fit_store is not None:
            self._fit_store.close()
        self._training = self._fit_store = None

    def _training_data(self, trainer: pl.Trainer) -> TrainingData:
        data = TrainingData(request_train_dataloader(trainer), self.subjects, self.partition, self.risk_bands)
        if self.subjects != "index":
            again = check_loader(request_train_dataloader(trainer))
            check_order(data.subjects, subjects_of(again.dataset, self.subjects))
        return data


def _check_numbers(shards: Any, slices: Any, budget: Any, seed: Any, parallel_units: Any = 1) -> None:
    counts = {"shards": shards, "slices": slices, "parallel_units": parallel_units} | (
        {} if isinstance(budget, Mapping) else {"budget": budget}
    )
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"Expected argument `{name}` to be a positive integer but got {value!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigurationError(f"Expected argument `seed` to be a non-negative integer but got {seed!r}.")


def _check_choices(**given: Any) -> None:
    for name, choice in given.items():
        if choice not in _CHOICES[name]:
            raise ConfigurationError(f"Expected argument `{name}` to be one of {_CHOICES[name]} but got {choice!r}.")


def _coordinates(shard: int, prefix: Sequence[int]) -> dict[str, float]:
    return {"s3t/shard": float(shard), "s3t/stage": float(len(prefix)), "s3t/slice": float(prefix[-1])}
