"""The arguments of S3T, as a fit reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from peft import PeftConfig

from lightning_s3t.engine.subjects import Subjects
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.methods import UnlearningMethod
from lightning_s3t.plan import Partition, SequenceChoice
from lightning_s3t.store.registry import Newcomers
from lightning_s3t.tuning.floor import Floor

ExecutorName = Literal["local", "ray"]


@dataclass(frozen=True)
class FitConfig:
    """The arguments of S3T.

    Attributes:
        store: The store's folder.
        method: The unlearning method.
        choice: The choice of sequences to train.
        partition: The partition of the subjects, without the store's secret.
        secret_places: Whether the store's secret says where subjects belong.
        units: The settings of units.
        subjects: The owner of each row.
        layers: The blocks; None to find them.
        head: The head; None to find it.
        adapter: The adapter; None for whole layers.
        keep_registry: Whether the store records who is in the training data.
        floor: The closed-form head that answers when no unit is left; None without one.
        newcomers: Where people who come later belong.
        time_budget: The time limit of a fit in seconds; None for no limit.
        ledger: The address of the store's ledger; None for the folder, or for the address in it.
        snapshots: The location of the store's snapshots; None for the folder, or for the location in the ledger.
        keys: The location of their keys; None for no encryption, or for the location in the ledger.
        executor: Where units are trained.
    """

    store: Path
    method: UnlearningMethod
    choice: SequenceChoice
    partition: Partition
    secret_places: bool
    units: UnitSettings
    subjects: Subjects
    layers: str | Sequence[str] | Sequence[Sequence[str]] | None
    head: str | Sequence[str] | None
    adapter: PeftConfig | None
    keep_registry: bool
    floor: Floor | None = None
    newcomers: Newcomers = "retrain"
    time_budget: float | None = None
    ledger: str | None = None
    snapshots: str | None = None
    keys: str | None = None
    executor: ExecutorName = "local"

    @property
    def in_scratch(self) -> FitConfig:
        """The same for a store in a scratch folder, which has everything in it."""
        return replace(self, ledger=None, snapshots=None, keys=None)
