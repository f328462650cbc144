"""EnsembleModule: the user's LightningModule, answering as the ensemble of each shard's best survivor."""

from __future__ import annotations

from typing import Any, TypeVar

import lightning.pytorch as pl
from torch import nn
from torchmetrics import Metric

from lightning_s3t.engine.lightning_internals import copy_uncompiled
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.serving.notifier import listeners_of
from lightning_s3t.serving.predictor import EnsemblePredictor

Self = TypeVar("Self", bound="EnsembleModule")


class EnsembleModule(EnsemblePredictor, pl.LightningModule):
    """A LightningModule around the user's, whose network answers as an ensemble.

    An `EnsemblePredictor` with the user's steps, metrics and hooks: `trainer.test(served, dm)` runs their `test_step`,
    and when that calls the network, each shard's best survivor answers and the outputs are combined.

    It works on a copy, so the user's module can be trained at the same time. It stays in eval mode, cannot be given to
    `trainer.fit`, and is loaded from its store alone, never from a checkpoint. Close it, or use it in a `with` block.

    Args:
        module: The user's module, with its pretrained weights. It is changed: `from_store` works on a copy.
        store: The opened store; `close` closes it.
        aggregate: See `from_store`.
        passes: See `from_store`.
        preload: See `from_store`.

    Raises:
        StoreMismatchError: The module is not the one that the store was trained with.

    Example:
        >>> EnsembleModule.from_store("runs/none", pl.LightningModule())
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.StoreError: ...
    """

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Logs as the user's module does, so that one trainer can test both.

        Args:
            name: See `LightningModule.log`.
            value: Likewise.
            args: Likewise.
            kwargs: Likewise.
        """
        if isinstance(value, Metric) and kwargs.get("metric_attribute") is None:
            # Lightning compares a metric's attribute with that of the last run, where it was not called module.name
            kwargs["metric_attribute"] = next((n for n, m in self.module.named_modules() if m is value), None)
        super().log(name, value, *args, **kwargs)

    def setup(self, stage: str) -> None:
        """Called when a run begins: a served model is not trained.

        Raises:
            UnsupportedError: The run is a fit.
        """
        if stage == "fit":
            raise UnsupportedError(
                "An EnsembleModule serves trained units; it cannot be trained. Pass your own module to trainer.fit, "
                "and the S3T callback with the same store to the trainer: it trains the missing units."
            )
        self.module.setup(stage)  # type: ignore[operator]

    @classmethod
    def _copy(cls, module: nn.Module) -> nn.Module:
        copied = copy_uncompiled(module)
        copied.configure_model()
        return copied

    def _listeners(self) -> list[object]:
        return [self, *listeners_of(self._trainer)]

    def _tie_in(self) -> None:
        """Let Lightning find the user's steps, hooks and dataloaders on this module, and their logs reach its trainer.

        Lightning looks for them as attributes, and asks of each whether it is that of the base class.
        """
        module: Any = self.module
        own = {name for kind in (EnsembleModule, EnsemblePredictor) for name in vars(kind)}
        for name in dir(type(module)):
            base = getattr(pl.LightningModule, name, None)
            if name.startswith("_") or not callable(base) or name in own:
                continue
            if getattr(type(module), name) is not base:
                setattr(self, name, getattr(module, name))
        module.log, module.log_dict = self.log, self.log_dict
