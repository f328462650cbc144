"""The audit: compares the serving units of a store with a training without the forgotten subjects."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_s3t.callbacks import Unlearning
from lightning_s3t.engine.elsewhere import writing_elsewhere
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.executors.audit import AuditTarget
from lightning_s3t.executors.audit_report import AuditReport
from lightning_s3t.store import Store
from lightning_s3t.store.disk.scratch import Scratch


def audit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    units: int | Iterable[str] | Literal["all"] = "all",
    seed: int = 0,
    **fit_arguments: Any,
) -> AuditReport:
    """Train surviving units again, without the forgotten subjects, and compare them bit by bit with those that serve.

    Everything is built in a temporary folder inside the store; apart from that, the store is only read. Loggers are
    silenced, and checkpoints go to that folder. Other files that the script's own callbacks write are written again.

    Args:
        trainer: A trainer configured as for the fit, with the same Unlearning callback.
        model: The module as for the fit: before any training.
        datamodule: The data as for the fit, preferably without the rows of forgotten subjects: only then are values
            examined that the script computes over all rows.
        units: Number of surviving units to draw (their ancestors are audited too), or their names, or "all".
        seed: Seed of the draw.
        fit_arguments: Further arguments of `trainer.fit`, such as train_dataloaders.

    Returns:
        The report; `report.passed` is True if all are bitwise equal.

    Raises:
        ConfigurationError: The trainer has no Unlearning callback, or a named unit does not survive.
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
