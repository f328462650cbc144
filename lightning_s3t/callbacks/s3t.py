"""The S3T callback: a trainer with it trains by slices, into a store that can forget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from peft import PeftConfig

from lightning_s3t.callbacks.unlearning import IsolationChoice, PartitionKind, Unlearning
from lightning_s3t.engine.subjects import Subjects
from lightning_s3t.executors.fit_config import ExecutorName
from lightning_s3t.methods import S3TMethod
from lightning_s3t.plan import DataMode, EpochRule, RiskBands
from lightning_s3t.store import RequestRecord
from lightning_s3t.store.registry import Newcomers
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER
from lightning_s3t.tuning.floor import Floor


class S3T(Unlearning):
    """Train any LightningModule so that data can be removed from it exactly, by deactivating layers.

    The training data is divided into `shards` of `slices` each. Every shard fine-tunes the pretrained model with
    adapters, one group of layers per slice, from the top layers down, on `budget` sequences of its slices (S3T, Basu
    Roy Chowdhury et al., arXiv 2406.16257). One `trainer.fit` trains every missing unit and skips existing ones, so an
    interrupted fit, a fit after deletions and a fit with more data are all the same call.

    The script does not change: its module, data, optimizers, schedulers, loggers and callbacks are used for every unit.
    When `fit` returns, the module given to it is unchanged; the trained units are in the store. Serve it with
    `EnsembleModule.from_store(store, module)`.

    Args:
        store: The folder for the trained units.
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        budget: Number of sequences of the slices that each shard is trained on, B; or a limit on their cost per shard:
            {"units": 40}, or {"fine_tunes": 3.5} in multiples of one full fine-tune. A later fit may raise it: trained
            units stay, and sequences are added.
        subjects: The owner of each row: the name of an attribute of the data set that has one id per row, a callable
            that takes the data set and returns them, or its import path. "index" uses each row's index in the innermost
            data set, even under `Subset` ("part:row" if several are concatenated). If a row is later removed from that
            data set, the ids of all rows after it change.
        sequences: The planner of the sequences: "optimal" (most slices remaining after future requests), "cyclic",
            "bms", "conditional", "random", "all", "sisa", or the sequences themselves.
        groups: Number of layer groups; None for one per slice. With fewer, consecutive stages continue with the same
            group, so that a network with few blocks can have more slices.
        layers: The blocks, if they are not found automatically: a path, a list of paths, or a list of groups.
        head: The head, if it is not found automatically: a path or a list of paths.
        adapter: A PeftConfig, a dict of one, or None to fine-tune whole layers. The default is the paper's LoRA, or the
            module's own adapters if it is a PEFT model, or whole layers if LoRA fits no layer (an LSTM).
        stage_data: "cumulative" trains stage k on the first k slices of the sequence, "disjoint" on the k-th alone.
        seed: Seed of all randomness of the units, and, with the store's secret, of the partition.
        partition: "secret" assigns subjects to slices with a secret that a new store draws, so that an id does not
            reveal where its data is. "public" does not use a secret, so that others can repeat an experiment bit for
            bit.
        epoch_rule: "full" trains every stage for the trainer's max_epochs, "sisa" for 2E/(L+1) of them.
        request_prior: The probability of a request for each slice, for planners that use it: one per slice, or one per
            shard and slice (`lightning_s3t.plan.slice_prior` computes it from subjects); None for equal probabilities.
        risk_bands: Which subjects are likely to ask, so that they share slices: `RiskBands`, or a mapping of its
            arguments, in which `risks` may also be a CSV or JSON file; None to place all subjects equally.
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
            retrains the units that they reach there, so that the order of arrival does not matter. "append" gives those
            who come together an additional shard, and trains nothing else. Without a registry "retrain" is always used.
            Each fit may choose.
        time_budget: The time limit of a fit: seconds, "DD:HH:MM:SS" or a timedelta; None for no limit. A unit is not
            started if it would not finish in time, no unit is interrupted, and at least one is trained; the next fit
            continues. Units that improve serving most come first. `Trainer(max_time=...)` means the same.
        ledger: Where the store's ledger is kept: "postgresql://user@host/database?schema=name" for several machines
            that share the store's folder (docs/machines.md); None for a file in the folder, or for the ledger that the
            folder names.
        snapshots: Where snapshots are kept if the ledger is in a database: "s3://bucket/prefix" or a folder that the
            machines share (docs/machines.md); None for the store's folder, or for their current location.
        keys: A folder for the keys of snapshots, in no backup of them: then each snapshot is encrypted, and a request
            deletes its key (docs/keys.md); None for no encryption, or for the folder that the store names.
        executor: Where units are trained. "local": on this machine. "ray": on the machines of a Ray cluster, with
            `parallel_units` on each GPU, and the same bits (docs/cluster.md).

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=5, logger=False, callbacks=[
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
        groups: int | None = None,
        layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        head: str | Sequence[str] | None = None,
        adapter: PeftConfig | Mapping[str, Any] | None = DEFAULT_ADAPTER,
        stage_data: DataMode = "cumulative",
        epoch_rule: EpochRule = "full",
        seed: int = 0,
        partition: PartitionKind = "secret",
        request_prior: Sequence[float] | Sequence[Sequence[float]] | None = None,
        risk_bands: RiskBands | Mapping[str, Any] | None = None,
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
        super().__init__(
            S3TMethod(shards, slices, budget, sequences, groups, stage_data, epoch_rule, request_prior, risk_bands),
            store,
            subjects=subjects,
            layers=layers,
            head=head,
            adapter=adapter,
            seed=seed,
            partition=partition,
            keep_registry=keep_registry,
            isolation=isolation,
            parallel_units=parallel_units,
            digest_rows=digest_rows,
            floor=floor,
            newcomers=newcomers,
            time_budget=time_budget,
            ledger=ledger,
            snapshots=snapshots,
            keys=keys,
            executor=executor,
        )

    def forget(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Remove subjects from the store, and notify the trainer's module and callbacks (`on_forget`).

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.forget`).
        """
        receipt = super().forget(subjects, strict, request_id)
        assert isinstance(receipt, RequestRecord)  # S3T revokes: nothing waits
        return receipt

    def rectify(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Remove everything that the subjects' old data reached, and notify module and callbacks (`on_rectify`).

        Correct the rows first: the next fit trains on the rows that the data set then returns (`Store.rectify`).

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.forget`).
        """
        receipt = super().rectify(subjects, strict, request_id)
        assert isinstance(receipt, RequestRecord)
        return receipt
