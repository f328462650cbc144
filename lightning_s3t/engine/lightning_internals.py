"""Everything that is not Lightning's public API, in one place.

A fit that trains many units has to reset the trainer between them. Lightning offers no public way, and its own
LearningRateFinder and BatchSizeFinder use these attributes too. They are those of Lightning 2.6; the tests of this file
run against the lowest and the newest release that pyproject.toml admits.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar, Timer, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loggers.utilities import _log_hyperparams
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource, _request_dataloader
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import _TunerExitException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.utils.data import DataLoader

from lightning_s3t.engine.state_keeper import StateKeeper, keep_module
from lightning_s3t.tuning.compiled import has_compiled_parts
from lightning_s3t.tuning.module_copy import copy_module

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

# where a trainer keeps its callbacks while its timers are taken out
_WITH_TIMERS = "_s3t_callbacks_with_timers"

# hooks of data module and module that run once, however many units are trained
_ONCE = ("prepare_data", "setup", "teardown")
_ONCE_OF_MODULE = ("configure_model", "configure_sharded_model", "configure_callbacks")


def run_instead_of_fit(trainer: pl.Trainer, run: Callable[[], None]) -> None:
    """Makes a fit call `run` once its setup hooks have run, and end there as Lightning's own clean exits do.

    At that point the strategy would set up: data and model are ready, nothing has moved to a device, and there are no
    optimizers. Teardown hooks run and loggers are finalized; loops, `on_fit_start` and later hooks do not run.

    Args:
        trainer: The trainer, in a callback's `setup`.
        run: The function to call instead.
    """
    strategy = trainer.strategy

    def setup(_: pl.Trainer) -> None:
        vars(strategy).pop("setup")
        with _signals_handled(trainer):
            run()
        end_fit()

    vars(strategy)["setup"] = setup


def training_step(trainer: pl.Trainer, batch: Any) -> Any:
    """Runs the module's training step on a batch, outside of the loop that would.

    Args:
        trainer: The trainer, in a fit.
        batch: The batch, on the device.
    """
    takes_number = is_param_in_hook_signature(trainer.lightning_module.training_step, "batch_idx", min_args=2)
    return trainer.strategy.training_step(*((batch, 0) if takes_number else (batch,)))


def refuse_checkpoint(trainer: pl.Trainer, refuse: Callable[[], NoReturn]) -> None:
    """Makes a fit raise before it loads a checkpoint that it was given, and not once that is in the module.

    Args:
        trainer: The trainer, in a callback's `setup`.
        refuse: Raises.
    """
    connector = trainer._checkpoint_connector

    def resume_start(path: Any = None, *args: Any, **kwargs: Any) -> None:
        vars(connector).pop("resume_start")
        if path is not None:
            refuse()
        connector.resume_start(path, *args, **kwargs)

    vars(connector)["resume_start"] = resume_start


def refuse_own_checkpoints(trainer: pl.Trainer, refuse: Callable[[str], NoReturn]) -> None:
    """Makes a trainer raise where it is asked for the best or last checkpoint of its fit, until its next fit.

    Args:
        trainer: The trainer.
        refuse: Takes the name of the run ("test") and raises.
    """
    connector = trainer._checkpoint_connector
    select = type(connector)._select_ckpt_path

    def refuse_or_select(function: TrainerFn, path: Any, *args: Any, **kwargs: Any) -> Any:
        if function == TrainerFn.FITTING:
            vars(connector).pop("_select_ckpt_path")
        elif path in ("best", "last") or (path is None and not kwargs.get("model_provided", True)):
            refuse(function.value)
        return select(connector, function, path, *args, **kwargs)

    vars(connector)["_select_ckpt_path"] = refuse_or_select


def end_fit() -> NoReturn:
    """Ends a fit from within a hook, as finished."""
    raise _TunerExitException


@contextmanager
def _signals_handled(trainer: pl.Trainer) -> Iterator[None]:
    """Has Lightning notice SIGTERM and SLURM's signal to requeue, as it does before it runs its loops.

    Lightning saves a checkpoint before it requeues a job, and would resume from it. A fit continues from the store, so
    nothing needs to be saved.
    """
    vars(trainer)["save_checkpoint"] = lambda *_, **__: None
    trainer._signal_connector.register_signal_handlers()
    try:
        yield
    finally:
        vars(trainer).pop("save_checkpoint")
        trainer._signal_connector.teardown()


def log_hyperparameters(trainer: pl.Trainer) -> None:
    """Gives the loggers the hyperparameters of module and data module, as a fit does before it runs its loops.

    Args:
        trainer: The trainer.
    """
    if trainer.enable_autolog_hparams:
        _log_hyperparams(trainer)


def fit_again(trainer: pl.Trainer, loader: DataLoader[Any]) -> None:
    """Runs a whole `trainer.fit` in a process that has got the trainer from one in which setup hooks have run.

    Hooks that have run once for all such processes do not run again: `prepare_data`, `setup`, `configure_model`,
    `configure_callbacks` and `teardown` of module and data module. Hooks of callbacks all run.

    Args:
        trainer: The trainer.
        loader: The train dataloader, instead of the script's.
    """
    module, datamodule = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    for part, hooks in ((module, (*_ONCE, *_ONCE_OF_MODULE)), (datamodule, _ONCE)):
        if part is not None:
            vars(part).update({hook: _nothing for hook in hooks if is_overridden(hook, part)})
    source, validation = (
        _given(trainer.fit_loop._data_source),
        _given(trainer.fit_loop.epoch_loop.val_loop._data_source),
    )
    owner = datamodule if datamodule is not None else module
    if source is None:
        vars(owner)["train_dataloader"] = lambda: loader
    trainer.fit(
        module, train_dataloaders=None if source is None else loader, val_dataloaders=validation, datamodule=datamodule
    )


def leave_signals_to_script(trainer: pl.Trainer) -> None:
    """Keeps a process that trains a unit from requeueing the job: SLURM signals every process of it.

    Args:
        trainer: The trainer, in that process.
    """
    vars(trainer).pop("save_checkpoint", None)
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
        signal.signal(environment.requeue_signal or signal.SIGUSR1, signal.SIG_IGN)


def _given(source: Any) -> Any:
    """Return the argument of `trainer.fit`; None if a hook of the module or data module provides the dataloader."""
    given = source.instance
    return None if isinstance(given, (pl.LightningModule, pl.LightningDataModule)) else given


def _nothing(*_: Any, **__: Any) -> None:
    pass


def take_over(trainer: pl.Trainer, run: Callable[[], None]) -> None:
    """Makes the trainer call `run` where it would run its fit loop: after all hooks.

    Args:
        trainer: The trainer, in `on_fit_start`.
        run: The function to call instead.
    """
    trainer.fit_loop.run = run  # type: ignore[method-assign]


def take_max_time(trainer: pl.Trainer) -> float | None:
    """Takes the trainer's timers out until `hand_back`, and returns the least time that they give, in seconds.

    A timer ends a training by the clock, which no rebuild can repeat: units must not have it.

    Args:
        trainer: The trainer, in a callback's `setup`.

    Returns:
        None without a timer, or with timers without a limit.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    limits = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    if limits:
        vars(trainer)[_WITH_TIMERS] = callbacks
        # a copy: the list itself is being iterated
        trainer.callbacks = [callback for callback in callbacks if not isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return min((limit for limit in limits if limit is not None), default=None)


def hand_back(trainer: pl.Trainer) -> None:
    """Undoes `take_over`, `run_instead_of_fit` and `take_max_time`.

    Args:
        trainer: The trainer.
    """
    vars(trainer.fit_loop).pop("run", None)
    vars(trainer.strategy).pop("setup", None)
    vars(trainer._checkpoint_connector).pop("resume_start", None)
    trainer.callbacks = vars(trainer).pop(_WITH_TIMERS, trainer.callbacks)  # type: ignore[attr-defined]


def run_fit_loop(trainer: pl.Trainer) -> None:
    """Runs Lightning's own fit loop once.

    Args:
        trainer: The trainer.
    """
    type(trainer.fit_loop).run(trainer.fit_loop)


def has_train_dataloader(trainer: pl.Trainer) -> bool:
    """Return whether the script provided a train dataloader, in any of Lightning's ways.

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


def has_communication_state(trainer: pl.Trainer) -> bool:
    """Returns whether a DDP strategy was given a communication state, which outlives a unit.

    Args:
        trainer: The trainer.
    """
    return getattr(trainer.strategy, "_ddp_comm_state", None) is not None


def syncs_batchnorm(trainer: pl.Trainer) -> bool:
    """Return whether the strategy replaces BatchNorm layers with synchronised ones.

    Args:
        trainer: The trainer.
    """
    return getattr(trainer.strategy, "_layer_sync", None) is not None


def logged_step(trainer: pl.Trainer) -> int:
    """Returns where the loggers' step axis stands.

    Args:
        trainer: The trainer.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def leave_out_earlier_steps(checkpoint: dict[str, Any], steps: int) -> None:
    """Remove the steps of earlier units, from which the loggers' axis continues, from a checkpoint.

    They would reveal how many rows those units had, and a unit's checkpoint is not erased with another unit.

    Args:
        checkpoint: The checkpoint to be written.
        steps: The position of the axis when the unit started.
    """
    of_epochs = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    if "_batches_that_stepped" in of_epochs:
        of_epochs["_batches_that_stepped"] -= steps


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Set the position of the loggers' step axis, at which test metrics are logged.

    Args:
        trainer: The trainer.
        step: The step.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def silent_logger() -> Logger:
    """Returns a logger that takes everything and keeps nothing; `fast_dev_run` uses it too."""
    return DummyLogger()


class TrainerReset:
    """Resets a trainer to its state before the first unit.

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
        # a progress bar has no state to reset, and holds a terminal that cannot be copied
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
        """Reset loops, callbacks, precision and the module's plain attributes; remove optimizers."""
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
            # unit's modules are new ones, for which torch compiles again until its limit is reached
            torch.compiler.reset()

    def finish(self) -> None:
        """Restore the trainer to its state before the first unit, with the script's own data source."""
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


def prepare_fit_loop(trainer: pl.Trainer, dataloader: Any, step: int) -> None:
    """Makes a trainer ready to run one unit: its data, its optimizers, a fresh wrapping for DDP.

    Args:
        trainer: The trainer, in its state before the fit loop.
        dataloader: The unit's train dataloader.
        step: The position of the loggers' step axis; the unit's own counters start at 0.
    """
    forget_dataloaders(trainer)
    trainer.fit_loop._data_source = _DataLoaderSource(dataloader, "train_dataloader")
    trainer.fit_loop.epoch_loop._batches_that_stepped = step
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):  # holds a copy of the module as of `setup`
            callback.setup(trainer, trainer.lightning_module, "fit")
    reconfigure(trainer)


@contextmanager
def fit_data(trainer: pl.Trainer, loader: DataLoader[Any]) -> Iterator[None]:
    """Configures optimizers and schedulers as for a fit with another dataloader, while the block runs.

    Args:
        trainer: The trainer, in `on_fit_start`.
        loader: The dataloader.
    """
    strategy, loop = trainer.strategy, trainer.fit_loop
    before = loop._data_source, strategy.optimizers, strategy.lr_scheduler_configs
    forget_dataloaders(trainer)
    loop._data_source = _DataLoaderSource(loader, "train_dataloader")
    try:
        strategy.setup_optimizers(trainer)
        yield
    finally:
        forget_dataloaders(trainer)
        loop._data_source, strategy.optimizers, strategy.lr_scheduler_configs = before


def saves_config(callback: pl.Callback) -> bool:
    """Returns whether a callback is the one that a LightningCLI saves its config with.

    By name: the class is in a module that needs jsonargparse.

    Args:
        callback: The callback.
    """
    return any(kind.__name__ == "SaveConfigCallback" for kind in type(callback).__mro__)


def replace_parts(trainer: pl.Trainer, replace: Mapping[int, object]) -> None:
    """Replace loggers and callbacks of a trainer.

    Args:
        trainer: The trainer.
        replace: The replacements, by the `id` of the replaced objects.
    """
    loggers: Any = [replace.get(id(logger), logger) for logger in trainer.loggers]
    trainer.loggers = loggers
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [replace.get(id(callback), callback) for callback in callbacks]


def profiler_to_send(profiler: PyTorchProfiler) -> PyTorchProfiler:
    """Returns a copy of torch's profiler that can be sent to another process and starts from the beginning there.

    The profiler itself stops, and takes its hooks off the module's parts; it starts again with the next action.

    Args:
        profiler: The trainer's.
    """
    sent = copy.copy(profiler)
    cache_events = profiler._cache_functions_events

    def cache_events_if_any() -> None:
        # no step is profiled in the script, but Lightning still asks torch for its events, which raises an error
        if getattr(profiler.profiler, "profiler", None) is not None:
            cache_events()

    vars(profiler)["_cache_functions_events"] = cache_events_if_any
    profiler.teardown(None)
    sent.profiler = sent._register = sent._parent_profiler = None
    sent._recording_map = {}
    sent._lightning_module = sent.function_events = None
    if sent._schedule is not None:
        sent._schedule = copy.copy(sent._schedule)
        if sent._schedule._schedule is profiler._default_schedule():
            sent._schedule._schedule = _DefaultSchedule()  # type: ignore[assignment]
        sent._profiler_kwargs = {**sent._profiler_kwargs, "schedule": sent._schedule}
    return sent


class _DefaultSchedule:
    """Unpickles as the other process's own default schedule, which Lightning recognises by identity."""

    def __reduce__(self) -> tuple[Any, ...]:
        return PyTorchProfiler._default_schedule, ()


def reconfigure(trainer: pl.Trainer) -> None:
    """Configures optimizers and schedulers afresh and wraps the module again.

    DDP registers the parameters that require a gradient when it wraps the module: parameters unfrozen later are never
    synchronised, without an error (Lightning-AI/pytorch-lightning#20340).

    Args:
        trainer: The trainer.
    """
    trainer.strategy.model = trainer.lightning_module
    trainer.strategy.setup(trainer)


def copy_uncompiled(module: nn.Module) -> pl.LightningModule:
    """Return a copy of a module, without the wrappers of `torch.compile(module)` and of a fit with it around its steps.

    Lightning sets the compiled steps on the module as attributes. They call the module that they were made for, so a
    copy that kept them would answer with the weights of the original.

    Args:
        module: A LightningModule, or one that was compiled as a whole.
    """
    original: Any = getattr(module, "_orig_mod", module)
    copied: pl.LightningModule = copy_module(original)
    if copied._compiler_ctx is not None:
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            vars(copied).pop(name, None)
        copied._compiler_ctx = None
    return copied


def is_compiled(module: nn.Module) -> bool:
    """Return whether torch compiles the module, or a part of it.

    Args:
        module: The module.
    """
    return getattr(module, "_compiler_ctx", None) is not None or has_compiled_parts(module)


def is_distributed(trainer: pl.Trainer) -> bool:
    """Return whether several processes train together.

    Args:
        trainer: The trainer.
    """
    return isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1


def starts_ranks_as_scripts(trainer: pl.Trainer) -> bool:
    """Return whether every rank is a script of its own, not a process that Lightning forks or spawns for a fit.

    Args:
        trainer: The trainer.
    """
    return isinstance(trainer.strategy, DDPStrategy) and not isinstance(
        trainer.strategy.launcher, _MultiProcessingLauncher
    )


def meeting_point() -> tuple[str, int, str]:
    """Return the address and port of the ranks' key-value store, and the backend of their process group."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), torch.distributed.get_backend()


def is_deterministic(trainer: pl.Trainer) -> bool:
    """Return whether trainings are reproducible bit for bit: on a CPU, or with torch's deterministic algorithms.

    Args:
        trainer: The trainer.
    """
    return isinstance(trainer.accelerator, CPUAccelerator) or torch.are_deterministic_algorithms_enabled()
