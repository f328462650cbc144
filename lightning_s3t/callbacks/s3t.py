"""The S3T callback: makes a trainer train by slices, into a store that can forget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from peft import PeftConfig

from lightning_s3t.callbacks.deletion import DeletionHook
from lightning_s3t.engine.lightning_internals import is_distributed, run_instead_of_fit
from lightning_s3t.engine.preflight import check_trainer
from lightning_s3t.engine.subjects import Subjects
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.executors.audit import AuditTarget
from lightning_s3t.executors.fit import Fit, FitConfig, isolation_of
from lightning_s3t.executors.fit_summary import FitSummary
from lightning_s3t.executors.processes.forkserver import warm_up
from lightning_s3t.plan import DataMode, EpochRule, Partition, RiskBands, SequenceChoice, UnitId
from lightning_s3t.serving import EnsemblePredictor
from lightning_s3t.store import Receipt
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, resolve_adapter

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
            strategies that spawn or fork their ranks. A store belongs to one of them.
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
        bands = RiskBands.of(risk_bands)
        self.config = FitConfig(
            self.store,
            SequenceChoice(sequences, slices, budget, seed, request_prior, stage_data, epoch_rule),
            Partition(shards, slices, seed, bands.slices if bands is not None else ()),
            UnitSettings(shards, slices, seed, stage_data, epoch_rule, parallel_units=parallel_units),
            subjects,
            bands,
            layers,
            head,
            resolve_adapter(adapter),
            keep_registry,
        )
        self.sequences = self.config.choice.plan()
        self.isolation = isolation
        self.deletion = DeletionHook(store)
        self.summary: FitSummary | None = None
        self._audited: AuditTarget | None = None
        self._fit: Fit | None = None
        self._sent: UnitTraining | None = None

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
        if self._unit_training is not None and self._unit_training.unit is not None:
            self._unit_training.note_file(Path(path).absolute())

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
        return self._unit_training.unit if self._unit_training is not None else None

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
            isolation = isolation_of(trainer, self.isolation)
            check_trainer(trainer, S3T, isolation, self.config.units.parallel_units)
            self._fit = fit = Fit(self.config, isolation, (self, self.deletion), self._audited)
            if isolation == "forkserver":
                warm_up()
            if isolation != "none":
                run_instead_of_fit(trainer, lambda: fit.run_isolated(trainer, pl_module))
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
            if self._unit_training is not None:
                self._unit_training.on_fit_start(trainer)
        elif self._fit is not None:
            self._fit.run_in_process(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when a unit's training begins: starts to watch it.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        if self._unit_training is None:
            return
        self._unit_training.on_train_start(trainer)
        if self._unit_training.unit is not None:
            coordinates = _coordinates(self._unit_training.unit.shard, self._unit_training.unit.prefix)
            for logger in trainer.loggers:
                logger.log_metrics(coordinates, step=self._unit_training.first_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch begins: where several processes train together, looks for deletion requests.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        if self._unit_training is None:
            return
        if trainer.current_epoch == 0:
            self._unit_training.seed()
        if is_distributed(trainer):
            self._unit_training.check_alive(trainer)

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
        if self._unit_training is not None and not is_distributed(trainer):
            self._unit_training.check_alive(trainer)

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
        if self._unit_training is not None:
            self._unit_training.advance(trainer)

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

    @property
    def _unit_training(self) -> UnitTraining | None:
        """What trains units: in the script's process that of the fit, in a unit's what was sent."""
        return self._fit.training if self._fit is not None else self._sent

    @property
    def _in_unit_process(self) -> bool:
        return self._unit_training is not None and self._unit_training.in_own_process

    def __getstate__(self) -> dict[str, Any]:
        # for a unit's process: who owns which row is not its business, and the store is not open there
        return {**vars(self), "config": None, "_fit": None, "_audited": None, "_sent": self._unit_training}

    def _close(self, trainer: pl.Trainer) -> None:
        # in a unit's process the store is the script's, and a forked process must not give its lock back
        if self._fit is not None and not self._in_unit_process:
            self._fit.close(trainer)
            self.summary = self._fit.summary or self.summary
            self.sequences = self._fit.sequences or self.sequences
            self._fit = None


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
