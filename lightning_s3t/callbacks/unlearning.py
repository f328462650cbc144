"""The Unlearning callback: makes a trainer train into a store that can forget, by any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from peft import PeftConfig
from typing_extensions import override

from lightning_s3t.callbacks.deletion import DeletionHook
from lightning_s3t.engine.lightning_internals import (
    is_distributed,
    refuse_checkpoint,
    refuse_own_checkpoints,
    run_instead_of_fit,
    take_max_time,
)
from lightning_s3t.engine.preflight import check_trainer, check_trainer_for_cluster, refuse_to_resume
from lightning_s3t.engine.subjects import Subjects
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.executors.audit import AuditTarget
from lightning_s3t.executors.fit import Fit, isolation_of
from lightning_s3t.executors.fit_config import ExecutorName, FitConfig
from lightning_s3t.executors.fit_summary import FitSummary
from lightning_s3t.executors.processes.forkserver import warm_up
from lightning_s3t.executors.time_budget import seconds_of
from lightning_s3t.methods import UnlearningMethod, method_of
from lightning_s3t.methods.checks import check_choice, check_count
from lightning_s3t.plan import UnitId
from lightning_s3t.serving import EnsemblePredictor
from lightning_s3t.serving.answer_trial import AnswerTrial
from lightning_s3t.serving.notifier import Answer
from lightning_s3t.serving.request_methods import RequestMethods
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.store.ledgers.address import check_folder_name
from lightning_s3t.store.registry import Newcomers
from lightning_s3t.store.snapshots.keys import check_keys
from lightning_s3t.store.snapshots.place import check_addresses
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, resolve_adapter
from lightning_s3t.tuning.floor import Floor

IsolationChoice = Literal["auto", "forkserver", "fork", "none"]
PartitionKind = Literal["secret", "public"]


class Unlearning(RequestMethods, pl.Callback):
    """Train any LightningModule so that data can be removed from it, with a given method.

    One `trainer.fit` trains every missing unit and skips existing ones, so an interrupted fit, a fit after deletions
    and a fit with more data are all the same call. The script does not change: its module, data, optimizers,
    schedulers, loggers and callbacks are used for every unit. When `fit` returns, the module given to it is unchanged;
    the trained units are in the store. Serve it with `EnsembleModule.from_store(store, module)`.

    `forget` carries a request out at once where the method only takes units out of service (`S3TMethod`, `SISA`) or
    subtracts rows (`ClosedForm`), and returns a receipt. Other methods (`Retrain`, `SSD`) answer requests with a new
    model: `forget` then returns a ticket, and the next `trainer.fit` trains the model, replaces the old one and sets
    `receipt`; until then the old model keeps serving, with the data in it.

    Args:
        method: The unlearning method; its name; or a mapping with its name as "name" and its arguments.
        store: The folder for the trained units.
        subjects: The owner of each row: the name of an attribute of the data set that has one id per row, a callable
            that takes the data set and returns them, or its import path. "index" uses each row's index in the innermost
            data set, even under `Subset` ("part:row" if several are concatenated). If a row is later removed from that
            data set, the ids of all rows after it change.
        layers: The blocks, if they are not found automatically: a path, a list of paths, or a list of groups.
        head: The head, if it is not found automatically: a path or a list of paths.
        adapter: A PeftConfig, a dict of one, or None to fine-tune whole layers. The default is the paper's LoRA, or the
            module's own adapters if it is a PEFT model, or whole layers if LoRA fits no layer (an LSTM).
        seed: Seed of all randomness of the units, and, with the store's secret, of the partition.
        partition: "secret" assigns subjects to slices with a secret that a new store draws, so that an id does not
            reveal where its data is. "public" does not use a secret, so that others can repeat an experiment bit for
            bit.
        keep_registry: Whether the store records who is in the training data (as keyed hashes). Without the registry it
            holds nothing per subject, and cannot refuse a request that names an unknown subject.
        isolation: How units are isolated. "forkserver": each unit is trained in a separate process that starts from the
            state which the fit found. "fork": the same, but forked from the script's process, for objects that cannot
            be sent to another process (a lock, an open file); on a CPU, with one thread. "none": one after another in
            the script's process, with known state reset in between; for debugging. "auto" is "forkserver", but "none"
            with strategies that spawn or fork their ranks. A store cannot change it.
        parallel_units: Number of units that are trained at the same time on the same devices, bitwise equal to training
            them one after another; more is faster if one unit does not keep the device busy.
        digest_rows: Read every row at the start of each fit, and retrain units whose rows have changed under the same
            ids. A store cannot change this setting. It needs isolated units.
        floor: A closed-form head that answers together with the shards, and alone when deletions have left no unit: a
            `Floor`, a mapping of its arguments, or True for one with its defaults. It learns from all rows of all
            shards, forgets by subtraction and never runs out of deletions; the first fit sends every row through the
            pretrained network once.
        newcomers: How subjects are added who come after the first fit. "retrain" puts them into the existing slices and
            retrains the units that they reach there. "append" gives those who come together an additional shard, and
            trains nothing else; only for methods whose units are revoked, and with a registry.
        time_budget: The time limit of a fit: seconds, "DD:HH:MM:SS" or a timedelta; None for no limit. A unit is not
            started if it would not finish in time, no unit is interrupted, and at least one is trained; the next fit
            continues. `Trainer(max_time=...)` means the same.
        ledger: Where the store's ledger is kept: "postgresql://user@host/database?schema=name" for several machines
            that share the store's folder (docs/machines.md); None for a file in the folder, or for the ledger that the
            folder names.
        snapshots: Where snapshots are kept if the ledger is in a database: "s3://bucket/prefix" or a folder that the
            machines share (docs/machines.md); None for the store's folder, or for their current location.
        keys: A folder for the keys of snapshots, in no backup of them: then each snapshot is encrypted, and a request
            deletes its key (docs/keys.md); None for no encryption, or for the folder that the store names.
        executor: Where units are trained. "local": on this machine. "ray": on the machines of a Ray cluster, with
            `parallel_units` on each GPU, and the same bits (docs/cluster.md).

    Attributes:
        receipt: Receipt of the requests that waited for the last fit (of the deletions, if there were corrections too);
            None if there were none.
        summary: Summary of the last fit.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> from lightning_s3t.methods import SSD
        >>> trainer = pl.Trainer(max_epochs=5, logger=False, callbacks=[
        ...     Unlearning(SSD(alpha=10.0), "runs/ssd", subjects="owners", adapter=None)])
        >>> Unlearning("amnesia", "runs/x", subjects="owners")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: There is no method 'amnesia'. Expected one of ...
    """

    def __init__(
        self,
        method: UnlearningMethod | str | Mapping[str, Any],
        store: str | Path,
        *,
        subjects: Subjects,
        layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        head: str | Sequence[str] | None = None,
        adapter: PeftConfig | Mapping[str, Any] | None = DEFAULT_ADAPTER,
        seed: int = 0,
        partition: PartitionKind = "secret",
        keep_registry: bool = True,
        isolation: IsolationChoice = "auto",
        parallel_units: int = 1,
        digest_rows: bool = False,
        floor: Floor | Mapping[str, Any] | bool | None = None,
        newcomers: Newcomers = "retrain",
        time_budget: float | str | timedelta | dict[str, int] | None = None,
        ledger: str | None = None,
        snapshots: str | Path | None = None,
        keys: str | Path | None = None,
        executor: ExecutorName = "local",
    ) -> None:
        check_choice("newcomers", newcomers, ("retrain", "append"))
        check_count("parallel_units", parallel_units)
        check_choice("partition", partition, ("secret", "public"))
        check_choice("isolation", isolation, ("auto", "forkserver", "fork", "none"))
        check_choice("executor", executor, ("local", "ray"))
        if executor == "ray" and isolation not in ("auto", "forkserver"):
            raise ConfigurationError(
                f"isolation={isolation!r} trains units in the script's process or in copies of it, so they cannot be "
                "on another machine. Leave it out, or executor='ray'."
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"Expected argument `seed` to be a non-negative integer but got {seed!r}.")
        self.method = method = method_of(method)
        if newcomers == "append" and method.response != "revoke":
            raise ConfigurationError(
                f"The method {method.name!r} trains one model on all data, so people who come later cannot have one "
                "of their own. Use newcomers='retrain', or a method with shards: S3T or SISA."
            )
        if method.head is not None and floor:
            raise ConfigurationError(
                f"The method {method.name!r} is a closed-form head already. Leave `floor` out, and give its arguments "
                "to the method."
            )
        floor, adapter = (floor, adapter) if method.head is None else (method.head, None)
        check_folder_name(store)
        place = check_addresses(Path(store), ledger, snapshots)
        key_folder = check_keys(Path(store), keys, place)
        if ledger is not None and floor:
            raise ConfigurationError(
                "A store with its ledger in a database cannot have a closed-form head: the database's log and backups "
                "would keep features of rows that a request has removed. Leave `ledger` out, or the head "
                f"({'choose another method' if method.head is not None else 'no `floor`'})."
            )
        self.store = Path(store)
        units = UnitSettings(
            shards=method.shards,
            slices=method.slices,
            seed=seed,
            data=method.stage_data,
            epochs=method.epoch_rule,
            groups=method.groups,
            parallel_units=parallel_units,
            digest_rows=digest_rows,
        )
        self.config = FitConfig(
            store=self.store,
            method=method,
            choice=method.sequences_to_train(seed),
            partition=method.partition(seed),
            secret_places=partition == "secret",
            units=units,
            subjects=subjects,
            layers=layers,
            head=head,
            adapter=resolve_adapter(adapter),
            keep_registry=keep_registry,
            floor=Floor.of(floor),
            newcomers=newcomers,
            time_budget=seconds_of(time_budget) if time_budget is not None else None,
            ledger=ledger,
            snapshots=place,
            keys=key_folder,
            executor=executor,
        )
        self.sequences = self.config.choice.plan()
        self.isolation = isolation
        self.deletion = DeletionHook(store)
        self.summary: FitSummary | None = None
        self.receipt: RequestRecord | None = None
        self._audited: AuditTarget | None = None
        self._fit: Fit | None = None
        self._sent: UnitTraining | None = None
        self._trial: AnswerTrial | None = None

    def register_file(self, path: str | Path) -> None:
        """Register a file that one of the script's callbacks writes, to be erased with the running unit.

        Checkpoints are registered automatically.

        Args:
            path: The file. Register it before writing it.
        """
        if self._unit_training is not None and self._unit_training.unit is not None:
            self._unit_training.note_file(Path(path).absolute())

    @contextmanager
    def auditing(self, audited: AuditTarget) -> Iterator[None]:
        """Turn a fit within the block into an audit, which rebuilds the audited units elsewhere and compares them.

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
        """The unit that is being trained; None outside a fit."""
        return self._unit_training.unit if self._unit_training is not None else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run begins: checks the trainer."""
        if self._in_unit_process:
            return
        if stage == "fit":
            isolation = isolation_of(trainer, self.isolation, has_units=self.method.has_units)
            units = self.config.units
            check_trainer(trainer, Unlearning, isolation, units.parallel_units, units.digest_rows)
            elsewhere = self.config.executor == "ray" and isolation != "none" and self._audited is None
            if elsewhere:
                check_trainer_for_cluster(trainer)
            refuse_checkpoint(trainer, refuse_to_resume)
            max_time = take_max_time(trainer)
            self._fit = fit = Fit(self.config, isolation, (self, self.deletion), self._audited, max_time)
            fit.begin(trainer)
            if isolation == "forkserver" and not elsewhere:
                warm_up()
            if isolation != "none":
                run_instead_of_fit(trainer, lambda: fit.run_isolated(trainer, pl_module))
        elif self.summary is not None and not isinstance(pl_module, EnsemblePredictor):
            rank_zero_warn(
                f"trainer.{TrainerFn(stage).value} was given {type(pl_module).__name__} as it was before the fit: S3T "
                f"does not change the module. {self._where_it_is()}"
            )
        self.deletion.attach(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when the strategy is set up: without isolation, plans which units have to be trained."""
        if self._in_unit_process:
            if self._unit_training is not None:
                self._unit_training.on_fit_start(trainer)
        elif self._fit is not None:
            self._fit.run_in_process(trainer, pl_module)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called before the sanity check: in a rehearsal, records the arguments of the network's calls."""
        rehearsed = self._unit_training.rehearsed if self._unit_training is not None else None
        if rehearsed is not None:
            self._trial = AnswerTrial(rehearsed[0])

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called after the sanity check: in a rehearsal, warns if the outputs of several models cannot be averaged."""
        rehearsed = self._unit_training.rehearsed if self._unit_training is not None else None
        if rehearsed is not None and self._trial is not None:
            problem = self._trial.find_problem(rehearsed[1])
            if problem is not None:
                rank_zero_warn(f"S3T: the shards can be trained, but their outputs cannot be combined. {problem}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when a unit's training begins: starts monitoring it."""
        if self._unit_training is None:
            return
        self._unit_training.on_train_start(trainer)
        if self._unit_training.unit is not None:
            coordinates = _coordinates(self._unit_training.unit.shard, self._unit_training.unit.prefix)
            for logger in trainer.loggers:
                logger.log_metrics(coordinates, step=self._unit_training.first_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch begins: if several processes train together, looks for deletion requests."""
        if self._unit_training is None:
            return
        if trainer.current_epoch == 0:
            self._unit_training.seed()
        if is_distributed(trainer):
            self._unit_training.check_alive(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each batch: looks for deletion requests, which cost a few microseconds."""
        if self._unit_training is not None and not is_distributed(trainer):
            self._unit_training.check_alive(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch ends: logs the unit's coordinates with its metrics."""
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
        """Called after each batch: records it, and updates the progress display."""
        if self._unit_training is not None:
            self._unit_training.on_train_batch_end(trainer, batch_idx)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Called when a run is interrupted: committed units are safe, the running unit is trained again."""
        self._close(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run ends: closes the store."""
        self._close(trainer)

    @override
    def _request(self, ask: Callable[[Store], Answer]) -> Answer:
        return self.deletion._request(ask)

    @property
    def _unit_training(self) -> UnitTraining | None:
        """The trainer of units: in the script's process that of the fit, in a unit's process the one that was sent."""
        return self._fit.training if self._fit is not None else self._sent

    @property
    def _in_unit_process(self) -> bool:
        return self._unit_training is not None and self._unit_training.in_own_process

    def __getstate__(self) -> dict[str, Any]:
        if self._fit is None:  # a copy, or a rank of ddp_spawn, which fits like this one
            if self._audited is not None:
                raise UnsupportedError(
                    "An audit cannot be sent to other processes. Use another strategy than ddp_spawn, such as 'ddp' or "
                    "a single device."
                )
            return dict(vars(self))
        # a unit's process must not know who owns which row, and the store is not open there
        return {**vars(self), "config": None, "_fit": None, "_audited": None, "_sent": self._unit_training}

    def _where_it_is(self) -> str:
        return f"What it trained is in {self.store}: use EnsembleModule.from_store({str(self.store)!r}, model)."

    def _refuse_own_checkpoints(self, run: str) -> NoReturn:
        raise UnsupportedError(
            f"trainer.{run} was asked for the best or last checkpoint of a fit with S3T. Its checkpoints are of "
            f"single units, with adapters in place; none of them is the trained model. {self._where_it_is()}"
        )

    def _close(self, trainer: pl.Trainer) -> None:
        # in a unit's process the store belongs to the script, and a forked process must not release its lock
        if self._fit is not None and not self._in_unit_process:
            self._fit.close(trainer)
            self.summary = self._fit.summary or self.summary
            if self._fit.finished:
                refuse_own_checkpoints(trainer, self._refuse_own_checkpoints)
            self.receipt = self._fit.receipt or self.receipt
            self.sequences = self._fit.sequences or self.sequences
            self._fit = None


def _coordinates(shard: int, prefix: Sequence[int]) -> dict[str, float]:
    return {"s3t/shard": float(shard), "s3t/stage": float(len(prefix)), "s3t/slice": float(prefix[-1])}
