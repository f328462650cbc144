"""The state of the script's objects besides weights and rows, recorded so that changes can be named."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from torch.utils.data import DataLoader, Dataset

from lightning_s3t.engine.found_state.digest import changed, digest_state
from lightning_s3t.engine.lightning_internals import saves_config
from lightning_s3t.engine.training_data import TrainingData

_SHOWN = 5


def digest_found(
    trainer: pl.Trainer, data: TrainingData, own: Collection[object], lightnings: bool = True
) -> dict[str, str]:
    """Returns digests of the state that a fit finds in module, data module, collate function and callbacks.

    Parameters, buffers and data sets are left out: the store compares them in ways of its own. Global variables and
    class attributes are not covered.

    Args:
        trainer: The trainer.
        data: The training data.
        own: S3T's own callbacks.
        lightnings: Whether to look at Lightning's callbacks too: they note folders, configs and the like of each run.
    """
    module, datamodule = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    callbacks = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if callback not in own
        and not isinstance(callback, ProgressBar)
        and (lightnings or not _is_lightnings(callback))
    ]
    roots: dict[str, object] = {
        type(module).__name__: module,
        "collate_fn": data.loader.collate_fn,
        "worker_init_fn": data.loader.worker_init_fn,
        **{f"callback {number} ({type(callback).__name__})": callback for number, callback in enumerate(callbacks)},
    }
    if datamodule is not None:
        roots[type(datamodule).__name__] = datamodule
    ignored: list[object] = [*own, *trainer.loggers, *module.parameters(), *module.buffers(), data.dataset, data.loader]
    ignored += [part for part in vars(datamodule or object).values() if isinstance(part, (Dataset, DataLoader))]
    return digest_state(roots, ignore=frozenset(map(id, ignored)))


def digest_memory(trainer: pl.Trainer) -> dict[str, str]:
    """Return digests of the memory of the script's own callbacks, by path.

    Args:
        trainer: The trainer.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    roots = {
        type(callback).__name__: callback
        for callback in callbacks
        if not _is_lightnings(callback) and not type(callback).__module__.startswith("lightning_s3t.")
    }
    ignored = [*trainer.loggers, trainer.lightning_module, trainer.datamodule]  # type: ignore[attr-defined]
    return digest_state(roots, ignore=frozenset(map(id, ignored)))


def _is_lightnings(callback: pl.Callback) -> bool:
    return type(callback).__module__.startswith("lightning.") or saves_config(callback)


def describe_changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return the first few changed paths; empty if nothing has changed.

    Args:
        before: The earlier result of `digest_found`.
        after: The current result.
    """
    paths: Sequence[str] = changed(before, after)
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
