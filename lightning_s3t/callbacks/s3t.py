"""The S3T callback: makes a trainer train by slices, into a store that can forget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from peft import PeftConfig

from lightning_s3t.callbacks.unlearning import IsolationChoice, PartitionKind, Unlearning
from lightning_s3t.engine.subjects import Subjects
from lightning_s3t.methods import S3TMethod
from lightning_s3t.plan import DataMode, EpochRule, RiskBands
from lightning_s3t.store import RequestRecord
from lightning_s3t.store.registry import Newcomers
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER
from lightning_s3t.tuning.floor import Floor


class S3T(Unlearning):
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
        slices: Number of slices of a shard, L.
        budget: Number of sequences of the slices that each shard is trained on, B; or what they may cost each shard:
            {"units": 40}, or {"fine_tunes": 3.5} in multiples of one full fine-tune. A later fit may raise it: what is
            trained stays, and sequences are added.
        subjects: Who owns each row: the name of an attribute of the data set that has one id per row, a callable that
            takes the data set and returns them, or its import path. "index" takes each row's number in the innermost
            data set, whatever `Subset` has picked it ("part:row" where several are concatenated): a row that is left
            out of that later gives all that follow it another id.
        sequences: How the sequences are chosen: "optimal" (most slices left after the coming requests), "cyclic",
            "bms", "conditional", "random", "all", "sisa", or the sequences themselves.
        groups: Number of layer groups; None for one a slice. With fewer, consecutive stages go on with the same group,
            so that slices can be finer than a network with few blocks has groups.
        layers: Where the blocks are, if they cannot be found: a path, a list of paths, or a list of groups.
        head: Where the head is, if it cannot be found: a path or a list of paths.
        adapter: A PeftConfig, a dict of one, or None to fine-tune whole layers. Left out, it is the paper's LoRA, or
            the module's own adapters if it is a PEFT model, or whole layers where LoRA goes on nothing (an LSTM).
        stage_data: "cumulative" trains stage k on the first k slices of the sequence, "disjoint" on the k-th alone.
        seed: What all randomness of the units follows from, and the partition with the store's secret.
        partition: "secret" puts subjects in slices by a secret that a new store draws, so that an id does not
            tell where its data is. "public" does without, so that others can repeat an experiment bit for bit.
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
        parallel_units: How many units are trained at the same time on the same devices, to the same bits as one after
            another; more is faster where one unit does not keep the device busy.
        digest_rows: Read every row at the start of each fit, and train again what was trained on rows that have
            changed under the same ids since. A store belongs to one of both. It needs units that are isolated.
        floor: A closed-form head that answers beside the shards, and alone when deletions have left no unit: a
            `Floor`, a mapping of its arguments, or True for one with its defaults. It learns from all rows of all
            shards, forgets by subtraction and never runs out of deletions; its first fit sends every row through the
            pretrained network once.
        newcomers: Where people belong who come after the first fit. "retrain" puts them into the slices of all shards,
            and trains again what they reach there, so that it does not matter who came when. "append" gives those who
            come together a shard of their own, one more that answers, and trains nothing else. Without a registry
            they are always retrained. Each fit may choose.
        time_budget: How long a fit may take: seconds, "DD:HH:MM:SS" or a timedelta; None for as long as it needs. A
            unit is not begun if it would not end in time, none is cut, and at least one is trained; the next fit goes
            on. Units that give most to what serves come first. `Trainer(max_time=...)` means the same.
        ledger: Where the store's ledger is kept: "postgresql://user@host/database?schema=name" for several machines
            that share the store's folder (docs/machines.md); None for a file in the folder, or for what that says.
        snapshots: Where snapshots are kept if the ledger is in a database: "s3://bucket/prefix" or a folder that the
            machines share (docs/machines.md); None for the store's folder, or for where they are.

    Raises:
        ConfigurationError: An argument is out of range; named, with what was expected.

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
        )

    def forget(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Removes subjects from what the store holds, and tells the trainer's module and callbacks (`on_forget`).

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
            request_id: A name of the caller's for the request, so that a retry does not count twice (`Store.forget`).
        """
        receipt = super().forget(subjects, strict, request_id)
        assert isinstance(receipt, RequestRecord)  # S3T revokes: nothing waits
        return receipt

    def rectify(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Takes out what the old data of subjects has reached, and tells module and callbacks (`on_rectify`).

        Correct the rows first: the next fit that begins trains on what the data set then gives (`Store.rectify`).

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
            request_id: A name of the caller's for the request, so that a retry does not count twice (`Store.forget`).
        """
        receipt = super().rectify(subjects, strict, request_id)
        assert isinstance(receipt, RequestRecord)
        return receipt
