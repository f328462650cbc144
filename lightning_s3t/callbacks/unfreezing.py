"""Slice-wise unfreezing: one layer group after the other, from the top down, all else frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from peft import PeftConfig

from lightning_s3t.callbacks.lightning_internals import reconfigure
from lightning_s3t.errors import AdapterError, ConfigurationError
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER, resolve_adapter
from lightning_s3t.tuning.freezing import ModuleFlags, freeze_statistics, set_trainable
from lightning_s3t.tuning.guard import Baseline, LeakageGuard
from lightning_s3t.tuning.layers import find_layers
from lightning_s3t.tuning.stages import Snapshot, Stage, StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap


class SliceUnfreezing(pl.Callback):
    """Trains a network's layer groups one after the other, from the top one down.

    At stage k, the adapters (or, with `adapter=None`, the layers) of group k and the head are trained; what the
    stages before have trained is frozen but goes on acting, and everything below is as it was pretrained. Optimizers
    and schedulers are configured afresh for each stage, since parameter groups added to a running optimizer keep
    the old ones' state.

    On its own it is gradual unfreezing within one fit, a stage every `epochs_per_slice` epochs, and leaves the
    trained modules in place. `S3T` uses it with one stage a unit.

    Args:
        slices: Number of stages, and of layer groups.
        epochs_per_slice: Epochs of a stage, when used on its own.
        layers: Where the blocks are, if they cannot be found: a path, a list of paths, or a list of groups.
        head: Where the head is, if it cannot be found.
        adapter: A PeftConfig, a dict of one, or None to train the layers themselves.
        seed: What fresh adapters are drawn from.

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
        self.builder: StageBuilder | None = None
        self.stage: Stage | None = None
        self._swap: ModuleSwap | None = None
        self._flags: ModuleFlags | None = None
        self._baseline: Baseline | None = None
        self._guard: LeakageGuard | None = None
        self._trained: list[Snapshot] = []

    def attach(self, module: pl.LightningModule) -> StageBuilder:
        """Finds layer groups and head in a module and tries the adapter, without changing anything.

        Args:
            module: The user's module.

        Raises:
            LayersError: Groups or head are not found, or do not fit the number of slices.
            AdapterError: The adapter does not fit the groups.
        """
        layers = find_layers(module, self.slices, self.layers, self.head)
        self.builder = StageBuilder(module, layers, self.adapter)
        self._swap = ModuleSwap(module, self.builder.originals)
        self._flags = ModuleFlags(module)
        self._baseline = None
        return self.builder

    def take_baseline(self) -> None:
        """Notes what the module holds, where several stages follow each other on it: none may change it for the next.

        Call it when all that prepares the module has run, before the first stage.
        """
        builder, _, _ = self._attached()
        self._baseline = Baseline(builder.root)

    def enter(self, stage: int, trained: Sequence[Snapshot], seed: int) -> Stage:
        """Puts a stage's modules in place and makes exactly its own tensors trainable.

        Args:
            stage: 1 to L.
            trained: The snapshots of the stages before.
            seed: The unit's seed.
        """
        builder, swap, flags = self._attached()
        flags.restore()
        self.stage = Stage(builder, swap, stage, trained, seed)
        self.freeze()
        return self.stage

    def freeze(self) -> None:
        """Freezes all that the stage does not own: parameters and running statistics."""
        builder, _, _ = self._attached()
        assert self.stage is not None
        set_trainable(builder.root, self.stage.trainable.values())
        freeze_statistics(builder.root, self.stage.owned.values())

    def guard(self) -> None:
        """Begins to watch: what the stage does not own, and which of its parameters are used."""
        builder, _, _ = self._attached()
        assert self.stage is not None
        self._guard = LeakageGuard(builder.root, self.stage.owned_names(), builder.originals, self._baseline)
        self.stage.watch()

    def check(self, what: str) -> None:
        """Raises if anything that the stage does not own has changed, or if what it owns was never used.

        Args:
            what: Who was trained, for messages.

        Raises:
            LeakageError: Something else changed.
            AdapterError: An adapter never acted.
        """
        assert self.stage is not None
        assert self._guard is not None
        self._guard.check(what)
        idle = self.stage.idle_modules()
        if idle:
            raise AdapterError(
                f"{', '.join(idle)} received no gradient while {what} was trained: the network reads their weights "
                "without calling them, or does not use them. Leave them out with the adapter's target_modules, or "
                "name other layers."
            )

    def detach(self) -> None:
        """Puts the user's own modules back and sets all flags as they were."""
        if self._swap is not None and self._flags is not None:
            self._swap.restore()
            self._flags.restore()
        self.stage = self._guard = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when fit begins: finds the layers.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        self.attach(pl_module)
        self._trained = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when an epoch begins: goes to the next stage when it is time.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        stage = min(trainer.current_epoch // self.epochs_per_slice + 1, self.slices)
        if self.stage is not None and self.stage.index == stage:
            freeze_statistics(pl_module, self.stage.owned.values())
            return
        self._end_stage()
        if self._baseline is None:
            self.take_baseline()
        self.enter(stage, self._trained, self.seed)
        reconfigure(trainer)
        self.freeze()
        self.guard()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training ends: checks the last stage and leaves the trained modules in place.

        Args:
            trainer: The trainer.
            pl_module: The user's module.
        """
        self._end_stage()
        if self._flags is not None:
            self._flags.restore()

    def _end_stage(self) -> None:
        if self.stage is None:
            return
        self.check(f"stage {self.stage.index}")
        self._trained.append(self.stage.snapshot())
        self.stage = None

    def _attached(self) -> tuple[StageBuilder, ModuleSwap, ModuleFlags]:
        if self.builder is None or self._swap is None or self._flags is None:
            raise ConfigurationError("SliceUnfreezing is not attached to a module yet: call attach(module) first.")
        return self.builder, self._swap, self._flags
