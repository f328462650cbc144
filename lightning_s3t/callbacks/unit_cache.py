"""The activation cache of a fit: made for its trainer, emptied when it ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_s3t.callbacks.lightning_internals import is_compiled, is_distributed
from lightning_s3t.errors import CacheError
from lightning_s3t.store.activation_files import FOLDER
from lightning_s3t.tuning.cache.activation_cache import ActivationCache
from lightning_s3t.tuning.cache.activations import Activations, FileBuffers, MemoryBuffers
from lightning_s3t.tuning.stages import StageBuilder

CacheKind = Literal["memory", "disk"]


class UnitCache(AbstractContextManager["UnitCache"]):
    """The activation cache that the units of a fit share.

    Args:
        trainer: The trainer, when its fit loop would start.
        builder: Builds the stages of its module.
        rows: How many rows the training data has.
        kind: Where activations are kept.
        store: The store's folder; None where another process has the store.
        parallel_units: How many units are trained at the same time, each with a cache of its own.

    Raises:
        CacheError: The fit cannot have one.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        builder: StageBuilder,
        rows: int,
        kind: CacheKind,
        store: Path | None,
        parallel_units: int = 1,
    ) -> None:
        _check(trainer, kind)
        buffers = MemoryBuffers() if kind == "memory" or store is None else FileBuffers(store / FOLDER)
        self._cache = ActivationCache(
            builder.root,
            builder.layers,
            Activations(buffers),
            rows + _validation_rows(trainer),
            trainer.num_devices * parallel_units,
        )
        self._warned = False

    @contextmanager
    def acting(self, stage: int) -> Iterator[None]:
        """Lets the network begin at a stage's own layer group while the block runs.

        Args:
            stage: The stage, whose modules are in place.
        """
        with self._cache.acting(stage):
            yield
        self._warn()

    def begin_epoch(self, number: int) -> None:
        """Notes that an epoch of the unit begins, and warns if few rows were found in one before.

        Args:
            number: Its number, from 0.
        """
        self._warn()
        self._cache.begin_epoch(number)

    def renew(self) -> None:
        """Begins anew if a deletion request has removed what was kept."""
        self._cache.renew()

    def __exit__(self, *error: object) -> None:
        self._cache.close()

    def _warn(self) -> None:
        cache = self._cache
        if self._warned or cache.found >= 0.5 * cache.asked:
            return
        self._warned = True
        rank_zero_warn(
            f"S3T(cache=...) found {cache.found} of {cache.asked} rows that a unit has seen before: they are "
            "other ones in each epoch, so that keeping them costs more than it saves. If the data is augmented at "
            "random, leave out the cache, or the augmentation. If texts are padded to the longest of their batch, pad "
            "them to a fixed length (padding='max_length')."
        )


def _check(trainer: pl.Trainer, kind: CacheKind) -> None:
    if is_compiled(trainer.lightning_module):
        raise CacheError(
            f"S3T(cache={kind!r}) answers in the place of the network's frozen layers, and torch.compile has taken "
            "them in. Leave either out."
        )
    if kind == "disk" and is_distributed(trainer):
        raise CacheError(
            "S3T(cache='disk') with several processes: a deletion request could not make sure that each of them "
            "writes nothing more. Use cache='memory' (each process keeps its own), or one process."
        )


def _validation_rows(trainer: pl.Trainer) -> int:
    loaders = trainer.val_dataloaders
    if loaders is None:
        return 0
    found = list(loaders.values()) if isinstance(loaders, dict) else loaders
    rows = 0
    for loader in found if isinstance(found, (list, tuple)) else [found]:
        try:
            rows += len(loader.dataset)
        except (AttributeError, TypeError):  # no way to tell
            continue
    return rows
