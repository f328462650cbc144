"""Slice-wise unfreezing: one layer group after the other, from the top down, all else frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from peft import PeftConfig

from lightning_s3t.engine.lightning_internals import reconfigure
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, resolve_adapter
from lightning_s3t.tuning.freezing import freeze_statistics
from lightning_s3t.tuning.stage_switch import StageSwitch, StageWatch
from lightning_s3t.tuning.stages import Snapshot, Stage


class SliceUnfreezing(pl.Callback):
    """Train a network's layer groups one after another, from the top one down.

    At stage k, the adapters (or, with `adapter=None`, the layers) of group k and the head are trained; the layers of
    earlier stages are frozen but stay active, and everything below is pretrained. Optimizers and schedulers are
    configured afresh for each stage, since parameter groups added to a running optimizer keep the old ones' state.

    It is gradual unfreezing within one fit, a stage every `epochs_per_slice` epochs, and leaves the trained modules in
    place. `S3T` trains the same stages, one per unit.

    Args:
        slices: Number of stages, and of layer groups.
        epochs_per_slice: Epochs of a stage.
        layers: The blocks, if they are not found automatically: a path, a list of paths, or a list of groups.
        head: The head, if it is not found automatically.
        adapter: A PeftConfig, a dict of one, or None to train the layers themselves.
        seed: Seed of new adapters.

    Raises:
        ConfigurationError: `slices` or `epochs_per_slice` is not a positive integer.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=8, callbacks=[SliceUnfreezing(slices=4, epochs_per_slice=2)], logger=False)
    """

    def __init__(
        self,
        slices: int,
        epochs_per_slice: int = 1,
        layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        head: str | Sequence[str] | None = None,
        adapter: PeftConfig | Mapping[str, Any] | None = DEFAULT_ADAPTER,
        seed: int = 0,
    ) -> None:
        for name, value in (("slices", slices), ("epochs_per_slice", epochs_per_slice)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"Expected argument `{name}` to be a positive integer but got {value!r}.")
        self.slices = slices
        self.epochs_per_slice = epochs_per_slice
        self.layers = layers
        self.head = head
        self.adapter = resolve_adapter(adapter)
        self.seed = seed
        self._switch: StageSwitch | None = None
        self._running: tuple[Stage, StageWatch] | None = None
        self._trained: dict[int, Snapshot] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when fit begins: finds the layers."""
        self._switch = StageSwitch(pl_module, self.slices, self.layers, self.head, self.adapter)
        self._running = None
        self._trained = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training begins: records the tensors that no stage may change."""
        if self._switch is not None:
            self._switch.take_baseline()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch begins: goes to the next stage when it is time."""
        switch = self._switch
        if switch is None:
            return
        index = min(trainer.current_epoch // self.epochs_per_slice + 1, self.slices)
        if self._running is not None and self._running[0].index == index:
            freeze_statistics(pl_module, self._running[0].owned.values())
            return
        self._end_stage()
        stage = switch.enter(index, self._trained, self.seed)
        reconfigure(trainer)
        self._running = stage, switch.watch(stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training ends: checks the last stage and leaves the trained modules in place."""
        self._end_stage()
        if self._switch is not None:
            self._switch.restore_flags()

    def _end_stage(self) -> None:
        if self._running is None:
            return
        stage, watch = self._running
        watch.check(f"stage {stage.index}")
        self._trained[stage.index] = stage.snapshot()
        self._running = None
