"""The audit: what serves, compared on one's own store with a training without the forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_s3t.callbacks import Unlearning
from lightning_s3t.engine.elsewhere import writing_elsewhere
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.executors.audit import AuditReport, AuditTarget
from lightning_s3t.store import Store
from lightning_s3t.store.scratch import Scratch


def audit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    units: int | Iterable[str] | Literal["all"] = "all",
    seed: int = 0,
    **fit_arguments: Any,
) -> AuditReport:
    """Train surviving units again, without the forgotten, and compare them bit by bit with those that serve.

    Everything is built in a folder within the store that is removed; else the store is only read. Loggers are
    silenced, and checkpoints go to that folder. What the script's own callbacks write otherwise is written again.

    Args:
        trainer: A trainer as it was for the fit, with the same Unlearning callback.
        model: The module as it was for the fit: before any training.
        datamodule: The data as for the fit, best without the rows of those who were forgotten: what the script computes
            over all rows is examined only then.
        units: How many surviving units to draw (each takes those that it stands on too), or their names, or "all".
        seed: What they are drawn from.
        fit_arguments: Further arguments of `trainer.fit`, as train_dataloaders.

    Returns:
        The report; `report.passed` says whether all are equal to the last bit.

    Raises:
        ConfigurationError: The trainer has no Unlearning callback, or there is no such unit.
        StoreError: The store cannot be read, or belongs to another script.

    Example:
        >>> report = audit(trainer, model, datamodule=dm, units=3)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
        3 of 3 units are, bit for bit, what training without the 2 forgotten subjects gives (...).
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, Unlearning)]  # type: ignore[attr-defined]
    if len(found) != 1:
        raise ConfigurationError(
            f"The trainer has {len(found)} Unlearning callbacks. Expected one, with the arguments that the store was "
            "trained with."
        )
    (s3t,) = found
    with Store.open(s3t.store) as store, closing(Scratch(store.path)) as scratch:
        audited = AuditTarget(store, units, seed, scratch.path / "store")
        with writing_elsewhere(trainer, scratch.path), s3t.auditing(audited):
            trainer.fit(model, datamodule=datamodule, **fit_arguments)
        return audited.report
