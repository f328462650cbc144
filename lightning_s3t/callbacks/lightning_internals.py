"""Everything that is not Lightning's public API, in one place.

A fit that trains many units has to set the trainer back between them. Lightning offers no public way, and its own
LearningRateFinder and BatchSizeFinder use these attributes too. They are those of Lightning 2.6; the tests of
this file run against the lowest and the newest release that pyproject.toml admits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource, _request_dataloader
from torch import nn

from lightning_s3t.callbacks.state_keeper import StateKeeper, keep_module
from lightning_s3t.tuning.compiled import has_compiled_parts

# attributes of the trainer itself that callbacks and loops change in a run
_TRAINER_ATTRIBUTES = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "check_val_every_n_epoch",
    "val_check_interval",
    "limit_train_batches",
    "limit_val_batches",
)


def take_over(trainer: pl.Trainer, run: Callable[[], None], sanity_check: bool) -> None:
    """Makes the trainer call `run` where it would run its fit loop: after all hooks.

    Args:
        trainer: The trainer, in `on_fit_start`.
        run: What to call instead.
        sanity_check: Whether to run a few steps of validation before.
    """
    trainer.fit_loop.run = run  # type: ignore[method-assign]
    if not sanity_check:
        trainer.fit_loop._sanity_steps = trainer.num_sanity_val_steps  # type: ignore[attr-defined]
        trainer.num_sanity_val_steps = 0


def hand_back(trainer: pl.Trainer) -> None:
    """Undoes `take_over`.

    Args:
        trainer: The trainer.
    """
    vars(trainer.fit_loop).pop("run", None)
    trainer.num_sanity_val_steps = vars(trainer.fit_loop).pop("_sanity_steps", trainer.num_sanity_val_steps)


def run_fit_loop(trainer: pl.Trainer) -> None:
    """Runs Lightning's own fit loop once.

    Args:
        trainer: The trainer.
    """
    type(trainer.fit_loop).run(trainer.fit_loop)


def has_train_dataloader(trainer: pl.Trainer) -> bool:
    """Says whether the script gave a train dataloader, in any of Lightning's ways.

    Args:
        trainer: The trainer, from `setup` on.
    """
    return bool(trainer.fit_loop._data_source.is_defined()) and trainer.fit_loop._data_source.instance is not None


def request_train_dataloader(trainer: pl.Trainer) -> Any:
    """Asks the script for its train dataloader, as the fit loop does.

    Args:
        trainer: The trainer.
    """
    return _request_dataloader(trainer.fit_loop._data_source)


def loaded_checkpoint(trainer: pl.Trainer) -> bool:
    """Says whether the fit was given a checkpoint to resume from.

    Args:
        trainer: The trainer, in `on_fit_start`.
    """
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def syncs_batchnorm(trainer: pl.Trainer) -> bool:
    """Says whether the strategy replaces BatchNorm layers by synchronised ones.

    Args:
        trainer: The trainer.
    """
    return getattr(trainer.strategy, "_layer_sync", None) is not None


@contextmanager
def without_running_state(trainer: pl.Trainer) -> Iterator[None]:
    """Takes off a trainer, for a block, what belongs to the running fit and cannot be pickled.

    Optimizers, schedulers and the iterators of dataloaders are made anew for each unit.

    Args:
        trainer: The trainer, when its fit loop would start or before.
    """
    strategy, loop = trainer.strategy, trainer.fit_loop
    optimizers, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
    iterators: list[tuple[Any, str]] = [(loop, "_combined_loader"), (loop, "_data_fetcher")]
    iterators += [(loop.epoch_loop.val_loop, "_combined_loader"), (loop.epoch_loop.val_loop, "_data_fetcher")]
    kept = [getattr(owner, name) for owner, name in iterators]
    run = vars(loop).pop("run", None)
    strategy.optimizers, strategy.lr_scheduler_configs = [], []
    for owner, name in iterators:
        setattr(owner, name, None)
    try:
        yield
    finally:
        strategy.optimizers, strategy.lr_scheduler_configs = optimizers, schedulers
        for (owner, name), value in zip(iterators, kept, strict=True):
            setattr(owner, name, value)
        if run is not None:
            vars(loop)["run"] = run


def settle_in(trainer: pl.Trainer) -> None:
    """Makes a trainer that was sent to another process ready to train there.

    Args:
        trainer: The trainer, sent when its fit loop would have started.
    """
    trainer.strategy.accelerator.setup_device(trainer.strategy.root_device)  # type: ignore[union-attr]
    trainer.lightning_module.trainer = trainer  # a module is sent without it
    if trainer.datamodule is not None:  # type: ignore[attr-defined]
        trainer.datamodule.trainer = trainer  # type: ignore[attr-defined]


def logged_step(trainer: pl.Trainer) -> int:
    """Returns where the loggers' step axis stands.

    Args:
        trainer: The trainer.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def silent_logger() -> Logger:
    """Returns a logger that takes everything and keeps nothing; `fast_dev_run` uses it too."""
    return DummyLogger()


class TrainerReset:
    """Sets a trainer back to where it stood before its first unit.

    Args:
        trainer: The trainer, when its fit loop would start.
        keep: Callbacks that are left as they are (S3T itself).
    """

    def __init__(self, trainer: pl.Trainer, keep: tuple[pl.Callback, ...] = ()) -> None:
        self._trainer = trainer
        self._attributes = {name: getattr(trainer, name) for name in _TRAINER_ATTRIBUTES}
        self._source = trainer.fit_loop._data_source
        forget_dataloaders(self._trainer)
        module = trainer.lightning_module
        # a progress bar shows things and holds a terminal: nothing to set back, and not to be copied
        callbacks = {
            f"callback {i} ({type(c).__name__})": c
            for i, c in enumerate(trainer.callbacks)  # type: ignore[attr-defined]
            if c not in keep and not isinstance(c, ProgressBar)
        }
        data = (self._source, self._source.instance, trainer.fit_loop.epoch_loop.val_loop._data_source)
        services = (trainer.strategy, trainer.profiler, trainer.datamodule)  # type: ignore[attr-defined]
        parts = (*trainer.loggers, *trainer.callbacks, *module.modules())  # type: ignore[attr-defined]
        shared = [part for part in (trainer, *data, *services, *parts) if part is not None]
        self._keeper = StateKeeper(
            {**callbacks, "fit_loop": trainer.fit_loop, "precision": trainer.precision_plugin}, shared
        )
        self._module_keeper = keep_module(module, shared)
        # not copied deeply: a data module may hold all of the data
        self._datamodule = dict(vars(trainer.datamodule)) if trainer.datamodule is not None else {}  # type: ignore[attr-defined]

    def restore(self) -> None:
        """Sets loops, callbacks, precision and the module's plain attributes back; optimizers go."""
        trainer = self._trainer
        forget_dataloaders(trainer)  # shuts the last unit's workers down before the loops are replaced
        self._keeper.restore()
        self._module_keeper.restore()
        for name, value in self._attributes.items():
            setattr(trainer, name, value)
        if self._datamodule:
            vars(trainer.datamodule).clear()  # type: ignore[attr-defined]
            vars(trainer.datamodule).update(self._datamodule)  # type: ignore[attr-defined]
        trainer.should_stop = False
        trainer.strategy.optimizers = []
        trainer.strategy.lr_scheduler_configs = []
        trainer._logger_connector.reset_results()
        trainer._logger_connector.reset_metrics()
        if is_compiled(trainer.lightning_module):
            # compiled frames may be reused although requires_grad or the modules changed (pytorch#139476), and every
            # unit's modules are new ones, for which torch compiles anew until its limit is reached
            torch.compiler.reset()

    def finish(self) -> None:
        """Leaves the trainer as it was before the first unit, with the script's own data source."""
        self.restore()
        self._trainer.fit_loop._data_source = self._source
        self._trainer.strategy.model = self._trainer.lightning_module


def forget_dataloaders(trainer: pl.Trainer) -> None:
    """Takes the dataloaders off a trainer's loops, and ends their workers.

    Without this the next unit trains zero batches, silently, or on the data that was there before.

    Args:
        trainer: The trainer.
    """
    loop = trainer.fit_loop
    if loop._data_fetcher is not None:
        loop._data_fetcher.teardown()
        loop._data_fetcher = None
    if loop._combined_loader is not None:
        loop._combined_loader.reset()
    loop._combined_loader = None
    loop.epoch_loop.val_loop._combined_loader = None


def prepare_fit_loop(trainer: pl.Trainer, dataloader: Any, step: int, max_epochs: int | None = None) -> None:
    """Makes a trainer ready to run one unit: its data, its optimizers, a fresh wrapping for DDP.

    Args:
        trainer: The trainer, as it stood when its fit loop would have begun.
        dataloader: The unit's train dataloader.
        step: Where the loggers' step axis stands; the unit's own counters start at 0.
        max_epochs: The unit's number of epochs; None leaves the trainer's.
    """
    forget_dataloaders(trainer)
    trainer.fit_loop._data_source = _DataLoaderSource(dataloader, "train_dataloader")
    trainer.fit_loop.epoch_loop._batches_that_stepped = step
    if max_epochs is not None:
        trainer.fit_loop.max_epochs = max_epochs
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):  # holds a copy of the module as it was in `setup`
            callback.setup(trainer, trainer.lightning_module, "fit")
    reconfigure(trainer)


def saves_config(callback: pl.Callback) -> bool:
    """Returns whether a callback is the one that a LightningCLI saves its config with.

    By name: the class is in a module that needs jsonargparse.

    Args:
        callback: The callback.
    """
    return any(kind.__name__ == "SaveConfigCallback" for kind in type(callback).__mro__)


def replace_parts(trainer: pl.Trainer, replace: Mapping[int, object]) -> None:
    """Puts other loggers and callbacks in the place of a trainer's own.

    Args:
        trainer: The trainer.
        replace: What goes where, by the `id` of what is there.
    """
    loggers: Any = [replace.get(id(logger), logger) for logger in trainer.loggers]
    trainer.loggers = loggers
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [replace.get(id(callback), callback) for callback in callbacks]


def reconfigure(trainer: pl.Trainer) -> None:
    """Configures optimizers and schedulers afresh and wraps the module again.

    DDP registers what requires a gradient when it wraps: parameters unfrozen later are never synchronised, without an
    error (Lightning-AI/pytorch-lightning#20340).

    Args:
        trainer: The trainer.
    """
    trainer.strategy.model = trainer.lightning_module
    trainer.strategy.setup(trainer)


def is_compiled(module: nn.Module) -> bool:
    """Says whether torch compiles the module, or a part of it.

    Args:
        module: The module.
    """
    return getattr(module, "_compiler_ctx", None) is not None or has_compiled_parts(module)


def is_distributed(trainer: pl.Trainer) -> bool:
    """Says whether several processes train together.

    Args:
        trainer: The trainer.
    """
    return isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1


def is_deterministic(trainer: pl.Trainer) -> bool:
    """Says whether the same training gives the same bits: on a CPU, or where torch was told to see to it.

    Args:
        trainer: The trainer.
    """
    return isinstance(trainer.accelerator, CPUAccelerator) or torch.are_deterministic_algorithms_enabled()
