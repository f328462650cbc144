"""One fit: the checks, plans and records before and after an executor trains missing units."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_s3t.columns import counted
from lightning_s3t.core.floor import PRETRAINED, FloorPart
from lightning_s3t.engine.fit_settings import classes_of, config_of, fit_settings
from lightning_s3t.engine.found_state.found_state import digest_found
from lightning_s3t.engine.lightning_internals import (
    fit_data,
    hand_back,
    is_distributed,
    log_hyperparameters,
    request_train_dataloader,
    starts_ranks_as_scripts,
    take_over,
)
from lightning_s3t.engine.muted_lightning import expecting_checkpoints, warned_once
from lightning_s3t.engine.preflight import check_every_optimizer, check_optimizers, check_trained_by_gradients
from lightning_s3t.engine.subjects import check_order, subjects_of
from lightning_s3t.engine.trainer_settings import trainer_settings
from lightning_s3t.engine.training_data import TrainingData, check_loader
from lightning_s3t.engine.unit_settings import Isolation
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import LayersError, UnsupportedError
from lightning_s3t.executors.audit import AuditStore, AuditTarget
from lightning_s3t.executors.fit_config import FitConfig
from lightning_s3t.executors.fit_messages import say_what_is_left, say_what_to_train, warn_of_plan
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.fit_summary import FitSummary, hyperparameters, mean_metrics
from lightning_s3t.executors.head_building import HeadBuilder
from lightning_s3t.executors.in_process import InProcessExecutor
from lightning_s3t.executors.isolated import IsolatedExecutor, Processes
from lightning_s3t.executors.processes.unit_processes import UnitProcesses, launch
from lightning_s3t.executors.ranks import on_rank_zero
from lightning_s3t.executors.time_budget import TimeBudget
from lightning_s3t.executors.unit_store import UnitStore
from lightning_s3t.methods import EditingMethod
from lightning_s3t.plan import SliceSequence, UnitId
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.store.keys.identities import first_key, partition_secret
from lightning_s3t.tuning.adapter_effect import measure_effect
from lightning_s3t.tuning.adapters import describe_adapter, own_adapters
from lightning_s3t.tuning.floor import Floor
from lightning_s3t.tuning.stage_switch import StageSwitch
from lightning_s3t.tuning.stages import StageBuilder


class Fit:
    """Trains the missing units of a store.

    Args:
        config: The arguments of S3T.
        isolation: How units are isolated.
        own: S3T's own callbacks, which are not reset between units.
        audited: The units to rebuild elsewhere and compare; None to train into the store.
        max_time: The trainer's time limit in seconds; None for no limit.

    Attributes:
        training: Trains a unit; None until the data and the layers are found.
        sequences: The sequences that are trained.
        summary: The summary of the fit; None until it has ended, and on all ranks but 0.
        finished: Whether the fit has finished: all units exist, or its time was used up.
        receipt: Of the requests that have waited for this fit; None if there were none.
    """

    def __init__(
        self,
        config: FitConfig,
        isolation: Isolation,
        own: Collection[pl.Callback],
        audited: AuditTarget | None,
        max_time: float | None = None,
    ) -> None:
        self._config = config
        self._own = tuple(own)
        self._audited = audited
        self._settings = dataclasses.replace(config.units, isolation=isolation)
        if audited is not None:  # one after another, which also checks that the order does not matter
            self._settings = dataclasses.replace(self._settings, parallel_units=1)
        limits = [limit for limit in (config.time_budget, max_time) if limit is not None and audited is None]
        self._budget = TimeBudget(min(limits, default=None), config.units.slices, config.units.groups)
        self._exit = ExitStack()
        self._exit.enter_context(expecting_checkpoints())
        self._adapter = config.adapter
        self._floor: tuple[Floor, FloorPart] | None = None
        self._fit_store: FitStore | None = None
        self._key: bytes | None = None
        self._began_at = 0
        self.training: UnitTraining | None = None
        self.sequences: tuple[SliceSequence, ...] = ()
        self.summary: FitSummary | None = None
        self.finished = False
        self.receipt: RequestRecord | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Record the position of the store's history as early as possible: later corrections are too new for this fit.

        Args:
            trainer: The trainer, in `setup`.
        """
        if trainer.is_global_zero:
            self._began_at = Store.newest_event(self._store_path)

    def run_isolated(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Train every unit in a separate process. Everything that can be refused is refused before anything changes.

        Args:
            trainer: The trainer, when its setup hooks have run.
            module: The user's module.
        """
        self._check_edits(alone=not is_distributed(trainer))
        self._check_floor(isolated=True)
        data, switch = self._training_data(trainer), self._switch(module)
        self.training = training = UnitTraining(data, switch, self._settings, self._config.method)

        def start() -> Processes:
            if self._config.executor == "ray" and self._audited is None:
                from lightning_s3t.executors.cluster.ray_processes import RayProcesses

                return RayProcesses(trainer, data, training, self._settings)
            return UnitProcesses(launch(trainer, data, training, self._settings), self._settings.parallel_units)

        with warned_once(), closing(IsolatedExecutor(trainer, data, self._settings, start)) as executor:
            fit_store = self._open_store(trainer, module, data, switch.builder, executor.rehearse())
            log_hyperparameters(trainer)
            heads = None
            if self._floor is not None:
                heads = HeadBuilder(trainer, fit_store, data, *self._floor, executor.read_features)
                if self._audited is None:
                    heads.build_floor()
            self._build(trainer, fit_store, executor.trained, lambda: executor.run(fit_store))
            if self._audited is not None:
                self._audited.complete(trainer, heads, fit_store, self._groups)
            elif heads is not None and self._config.floor is not None and self._config.floor.survivors:
                serving = on_rank_zero(trainer, self._units_for_heads)
                if serving is not None:
                    heads.build_on(serving, self._groups)

    def _units_for_heads(self) -> list[UnitId] | None:
        """Return the units to build heads on; None if there is no time, so that the next fit builds them."""
        if self.summary is None or self._budget.is_used_up:
            return None
        return [row.serves for row in self.summary.rows if row.serves is not None]

    @property
    def _groups(self) -> int:
        return self._settings.groups

    def run_in_process(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Let the trainer train all units in this process, instead of its fit loop.

        Args:
            trainer: The trainer, in `on_fit_start`.
            module: The user's module.
        """
        self._check_edits(alone=bool(trainer.fast_dev_run))  # type: ignore[attr-defined]
        self._check_floor(isolated=bool(trainer.fast_dev_run))  # type: ignore[attr-defined]
        check_optimizers(trainer, module)
        data, switch = self._training_data(trainer), self._switch(module)
        check_every_optimizer(trainer, module, switch.builder.layers)
        with fit_data(trainer, data.rehearsal_loader(trainer)):
            settings = trainer_settings(trainer)
        fit_store = self._open_store(trainer, module, data, switch.builder, settings)
        self.training = UnitTraining(data, switch, self._settings, self._config.method)
        units = UnitStore(trainer, fit_store, data, self._settings)
        executor = InProcessExecutor(self._own[0], self.training, units, fit_store, data, switch, self._settings)
        take_over(trainer, lambda: self._build(trainer, fit_store, executor.trained, lambda: executor.run(trainer)))

    def close(self, trainer: pl.Trainer) -> None:
        """Release the trainer and close the store; committed units stay.

        Args:
            trainer: The trainer.
        """
        self._exit.close()
        hand_back(trainer)
        if self._fit_store is not None:
            self._fit_store.close()

    def _check_edits(self, alone: bool) -> None:
        if isinstance(self._config.method, EditingMethod) and not alone:
            raise UnsupportedError(
                f"The method {self._config.method.name!r} edits the model in a separate process, on one device. DDP "
                "and isolation='none' rule this out. Leave them out."
            )

    def _check_floor(self, isolated: bool) -> None:
        if self._config.floor is None:
            return
        if not isolated:
            raise UnsupportedError(
                "The rows of a closed-form head are read in a separate process, and isolation='none' rules this out. "
                "Use the default isolation; otherwise leave `floor` out, or choose a method without such a head."
            )
        if self._config.method.waits:
            raise UnsupportedError(
                f"With the method {self._config.method.name!r} the model keeps serving until another one replaces it, "
                "so a floor would never answer. Leave `floor` out."
            )

    def _training_data(self, trainer: pl.Trainer) -> TrainingData:
        config = self._config
        secret = on_rank_zero(trainer, self._take_key)
        partition = dataclasses.replace(config.partition, secret=secret if config.secret_places else b"")
        data = TrainingData(request_train_dataloader(trainer), config.subjects, partition, config.method.risk_bands)
        again = check_loader(request_train_dataloader(trainer))
        check_order(data.subjects, subjects_of(again.dataset, config.subjects))
        return data

    def _take_key(self) -> bytes:
        """Use the key of the store, or draw one for a new store; return the partition's secret."""
        self._key = first_key(self._store_path)
        return partition_secret(self._key)

    @property
    def _store_path(self) -> Path:
        """The store whose requests apply."""
        return self._audited.store.path if self._audited is not None else self._config.store

    def _switch(self, module: pl.LightningModule) -> StageSwitch:
        config = self._config
        units = config.units
        try:
            switch = StageSwitch(
                module,
                units.slices,
                config.layers,
                config.head,
                config.adapter,
                units.groups,
                trains=config.method.has_units,
            )
        except LayersError:
            check_trained_by_gradients(module)
            raise
        self._adapter = switch.builder.adapter
        if config.adapter is not None and self._adapter is None:
            rank_zero_info(
                "S3T: the module has its own PEFT adapters; these are trained, group by group."
                if own_adapters(module)
                else "S3T: a layer group has no layer that LoRA fits, so whole layers are trained."
            )
        return switch

    def _open_store(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        data: TrainingData,
        builder: StageBuilder,
        of_trainer: Mapping[str, Any],
    ) -> FitStore:
        config = self._config
        settings = fit_settings(of_trainer, module, builder, data.loader, data.partition, self._settings, config.method)
        if config.floor is not None:
            self._floor = config.floor, config.floor.part(module, builder.layers)
        options = {
            "config": config_of(trainer),
            "classes": classes_of(trainer),
            "adapter_effect": measure_effect(builder),
            "found": digest_found(trainer, data, self._own, lightnings=False),
        }
        of_fit = (trainer, data, settings, config, options, self._key, self._began_at, self._budget)
        self._fit_store = fit_store = (
            AuditStore(self._audited, *of_fit) if self._audited is not None else FitStore(*of_fit)
        )
        fit_store.open(config.store, builder.base_tensors)
        if self._floor is not None:
            fit_store.check_floor(self._floor[1])
        self.sequences, plan = fit_store.sequences, fit_store.plan
        warn_of_plan(config, data, plan)
        if config.method.has_units and self._audited is not None:
            rank_zero_info(
                f"S3T: {counted(len(plan.build), 'unit')} to train again for comparison. Store: "
                f"{self._audited.store.path}"
            )
        elif config.method.has_units:
            say_what_to_train(config, data, builder, plan)
        for logger in trainer.loggers:
            logger.log_hyperparams(self._hyperparameters())
        found = {
            "rows": len(data.subjects),
            "subjects": len(data.bands),
            "newcomers": plan.newcomers,
            "other_subjects": len(plan.with_other_subjects),
            "other_rows": len(plan.with_other_rows),
            "digest_rows": self._settings.digest_rows,
        }
        on_rank_zero(trainer, lambda: fit_store.note_found(found))
        return fit_store

    def _build(
        self, trainer: pl.Trainer, fit_store: FitStore, trained: Sequence[UnitId], run: Callable[[], None]
    ) -> None:
        start = time.monotonic()
        if fit_store.plan.build:
            run()
        elif self._config.method.has_units and not fit_store.plan.present:
            rank_zero_info("S3T: no rows are left to train units on.")
        elif self._config.method.has_units:
            rank_zero_info(f"S3T: all {fit_store.plan.present} units are already trained, nothing to train.")
        seconds = time.monotonic() - start
        metrics = on_rank_zero(trainer, lambda: self._sum_up(fit_store, trained, seconds))
        ended = {*trained, *fit_store.passed_over}
        on_rank_zero(trainer, lambda: say_what_is_left(self._budget, fit_store.plan, ended))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        on_rank_zero(trainer, fit_store.finish)
        self.finished = True
        self.receipt = fit_store.receipt
        if self.receipt is not None:
            done = {"forget": "subjects are forgotten", "rectify": "subjects are trained on with corrected data"}
            rank_zero_info(
                f"S3T: request {self.receipt.request} is carried out: {self.receipt.subjects} "
                f"{done[self.receipt.kind]}, by {self.receipt.method!r}. Guarantee: {self.receipt.promise}."
            )

    def _sum_up(self, fit_store: FitStore, trained: Sequence[UnitId], seconds: float) -> dict[str, float]:
        """Summarise a fit; return the metrics of the serving units, each the mean over the shards."""
        store, path = fit_store.opened.store, str(self._config.store)
        has_units = self._config.method.has_units
        shards = store.partition.all_shards if has_units else 0
        passed_over = fit_store.passed_over
        self.summary = FitSummary.of(
            store.alive(), shards, self.sequences, trained, seconds, passed_over, self._budget.is_used_up
        )
        if self._audited is None:  # an audit has its own report
            if trained:
                rank_zero_info(str(self.summary))
            head = store.heads().get(PRETRAINED)
            rows = counted(head.rows, "row") if head is not None else "no rows"
            what = "the trained units are" if has_units else f"the closed-form head, of {rows}, is"
            if store.alive() or (head is not None and head.serves):
                serve = f"EnsembleModule.from_store({path!r}, model) serves it."
            else:
                what, serve = "nothing that can serve is", "Fit with data of other people."
            rank_zero_info(f"S3T: {what} in {path}; the module is unchanged. {serve}")
        serving = [row.serves for row in self.summary.rows if row.serves is not None]
        return mean_metrics([store.provenance(unit)[0].get("metrics", {}) for unit in serving])

    def _hyperparameters(self) -> dict[str, Any]:
        config, settings = self._config, self._settings
        return hyperparameters(
            {
                "method": config.method.name,
                "shards": settings.shards,
                "slices": settings.slices,
                "budget": len(self.sequences),
                "sequences": config.choice.sequences if isinstance(config.choice.sequences, str) else "given",
                "adapter": describe_adapter(self._adapter) if self._adapter is not None else "whole layers",
                "stage_data": settings.data,
                "epoch_rule": settings.epochs,
                "seed": settings.seed,
                "keep_registry": config.keep_registry,
                "store": str(config.store),
            }
        )


def isolation_of(
    trainer: pl.Trainer, asked: Literal["auto", "forkserver", "fork", "none"], has_units: bool = True
) -> Isolation:
    """Return how a fit keeps units apart.

    Args:
        trainer: The trainer, in `setup`.
        asked: The arguments of S3T.
        has_units: Whether the method trains units; rows of a closed-form head are read only in a separate process.
    """
    if trainer.fast_dev_run and has_units:  # type: ignore[attr-defined]
        return "none"  # nothing is kept, and the user wants to look
    if asked == "auto":
        forked = is_distributed(trainer) and not starts_ranks_as_scripts(trainer)
        return "none" if forked else "forkserver"
    return asked
