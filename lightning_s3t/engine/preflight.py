"""Checks of the trainer before anything is changed; all problems are in one message."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from lightning_s3t.engine.lightning_internals import (
    has_communication_state,
    has_train_dataloader,
    starts_ranks_as_scripts,
    syncs_batchnorm,
)
from lightning_s3t.engine.unit_settings import Isolation
from lightning_s3t.errors import ConfigurationError, DataError, UnsupportedError
from lightning_s3t.tuning.layers import Layers

_REFUSED_CALLBACKS: dict[type[pl.Callback], str] = {
    LearningRateFinder: "the rate that it finds depends on all the data. Find the rate on public data and set it",
    BatchSizeFinder: "it trains on all the data. Find the batch size without S3T, and set it",
    StochasticWeightAveraging: "it averages a copy of the whole model over stages. Use WeightAveraging instead",
    BaseFinetuning: "it freezes and unfreezes layers too. Leave that to S3T",
}


def check_trainer(
    trainer: pl.Trainer,
    callback_type: type[pl.Callback],
    isolation: Isolation = "none",
    parallel_units: int = 1,
    digest_rows: bool = False,
) -> None:
    """Checks, in `setup`, that a trainer can train units exactly.

    Args:
        trainer: The trainer.
        callback_type: S3T's class, of which only one is allowed.
        isolation: How units are isolated.
        parallel_units: Number of units to train at the same time.
        digest_rows: Whether to compare rows with those of the last fit.

    Raises:
        UnsupportedError: S3T cannot train with this trainer; the message lists all problems.
        ConfigurationError: There are two S3T callbacks.
        DataError: The train dataloader is missing.
    """
    if not isinstance(trainer, pl.Trainer):
        raise UnsupportedError(
            f"The trainer is a {type(trainer).__module__}.{type(trainer).__qualname__}, not a "
            "lightning.pytorch.Trainer. The packages `lightning` and `pytorch_lightning` don't mix in one script. "
            "Import both the trainer and the module from `lightning`; where a library imports `pytorch_lightning`, "
            "call lightning_s3t.alias_pytorch_lightning() before you import it."
        )
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    count = sum(isinstance(callback, callback_type) for callback in callbacks)
    if count > 1:
        raise ConfigurationError(f"The trainer has {count} S3T callbacks. Expected one: each would train all units.")
    problems = [
        f"{type(callback).__name__}: {reason}."
        for callback in callbacks
        for kind, reason in _REFUSED_CALLBACKS.items()
        if isinstance(callback, kind)
    ]
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        problems.append(
            f"Strategy {type(strategy).__name__}: it cuts or wraps the module in ways that the stages cannot undo. "
            "Supported are a single device and DDP (strategy='ddp')."
        )
    elif syncs_batchnorm(trainer):
        problems.append(
            "sync_batchnorm=True: it replaces layers while S3T does. Leave it out; frozen ones are in eval mode."
        )
    if has_communication_state(trainer):
        problems.append("A DDP communication state: it outlives a unit. Leave it out.")
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        problems.append("overfit_batches: every unit would see the same few batches. Leave it out.")
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        problems.append("reload_dataloaders_every_n_epochs: units have dataloaders of their own. Leave it out.")
    if digest_rows and isolation == "none" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        problems.append(
            "digest_rows: rows are read in a separate process, so that the data set's own state does not change. "
            "isolation='none' and strategies that fork or spawn their processes rule this out. Leave those out, or "
            "digest_rows."
        )
    problems += _problems_of_isolation(trainer, isolation, parallel_units)
    if problems:
        raise UnsupportedError("S3T cannot train with this trainer:\n" + "\n".join(f"  - {p}" for p in problems))
    if not has_train_dataloader(trainer):
        raise DataError(
            "There is no train dataloader. Pass one to trainer.fit, or give the module or the data module a "
            "train_dataloader()."
        )


def check_trainer_for_cluster(trainer: pl.Trainer) -> None:
    """Check, in `setup`, that units can be trained on other machines.

    Args:
        trainer: The trainer.

    Raises:
        UnsupportedError: They cannot.
    """
    device = trainer.strategy.root_device
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise UnsupportedError(
            f"executor='ray' with the strategy {type(trainer.strategy).__name__}: on a cluster each unit is trained "
            "on one device, and several units at the same time. Use Trainer(devices=1); or train units with DDP on "
            "one machine (executor='local')."
        )
    if device.type not in ("cpu", "cuda") or device.index:
        raise UnsupportedError(
            f"executor='ray' with the device {device}: a unit on a cluster sees one GPU, cuda:0, or none. Use "
            "Trainer(accelerator='gpu', devices=1) or Trainer(accelerator='cpu')."
        )


def _problems_of_isolation(trainer: pl.Trainer, isolation: Isolation, parallel_units: int) -> list[str]:
    if isolation == "none":
        if parallel_units > 1:
            return [
                "parallel_units: units can be trained at the same time only in separate processes, which "
                "fast_dev_run, isolation='none' and strategies that fork or spawn their processes rule out. Leave "
                "those out, or train one unit at a time: S3T(parallel_units=1)."
            ]
        return []
    problems = []
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        if isolation == "fork":
            problems.append(
                "isolation='fork' with several devices: their process group does not survive a fork. Use "
                "isolation='forkserver'."
            )
        if not starts_ranks_as_scripts(trainer):
            problems.append(
                f"isolation={isolation!r} with a strategy that forks or spawns its processes (ddp_spawn, ddp_fork, "
                "ddp_notebook). Use strategy='ddp', or isolation='none'."
            )
    if isolation == "fork" and not hasattr(os, "pidfd_open"):
        problems.append("isolation='fork' on this system: it needs Linux. Use isolation='forkserver'.")
    if isolation == "fork" and torch.cuda.is_initialized():
        problems.append(
            "isolation='fork' with CUDA in use: its context does not survive a fork. Use isolation='forkserver'."
        )
    return problems


def refuse_to_resume() -> NoReturn:
    """Refuse a checkpoint that was passed to the fit.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        "trainer.fit(ckpt_path=...) restores a training state that spans units. S3T resumes by itself: call fit "
        "without ckpt_path, with the same store, and it continues at the interrupted unit."
    )


def check_trained_by_gradients(module: pl.LightningModule) -> None:
    """Check that a module without detected layers is trained with gradients.

    Args:
        module: The module.

    Raises:
        UnsupportedError: The module has no optimizers: it is fitted without gradients.
    """
    try:
        with torch.random.fork_rng(devices=()):
            optimizers = module.configure_optimizers()
    except Exception:
        # it asks for more than there is at this point, so it has some
        return
    if optimizers is None:
        raise UnsupportedError(
            f"{type(module).__name__}.configure_optimizers returns no optimizer: the module is fitted without "
            "gradients (a memory of features, statistics of the data). S3T trains layers with gradients, so it has "
            "nothing to train here."
        )


def check_optimized(trainer: pl.Trainer, trainable: Mapping[str, nn.Parameter]) -> None:
    """Check that the optimizers hold every parameter that a unit trains.

    Args:
        trainer: The trainer, with the unit's optimizers.
        trainable: The unit's parameters, by name.

    Raises:
        UnsupportedError: Some are in no optimizer.
    """
    if not any(optimizer.param_groups for optimizer in trainer.optimizers):
        raise UnsupportedError(
            f"{type(trainer.lightning_module).__name__}.configure_optimizers returns no optimizer, so nothing would "
            "be trained. Return one, made from self.parameters()."
        )
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UnsupportedError(
            f"The optimizers do not have {len(missing)} of {len(trainable)} parameters that the unit trains: {shown}. "
            "configure_optimizers keeps parameters from before the layers were adapted, or leaves these out. Create "
            "the optimizer inside configure_optimizers, from self.parameters()."
        )


def check_optimizers(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Check that `configure_optimizers` returns new optimizers at each call.

    Args:
        trainer: The trainer, with its optimizers configured once.
        module: The module.

    Raises:
        UnsupportedError: It returns the same optimizer again, whose moments would leak from unit to unit.
    """
    strategy = trainer.strategy
    earlier, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
    strategy.setup_optimizers(trainer)
    again = strategy.optimizers
    strategy.optimizers, strategy.lr_scheduler_configs = earlier, schedulers
    if any(a is b for a in earlier for b in again):
        raise UnsupportedError(
            f"{type(module).__name__}.configure_optimizers returns the same optimizer at every call. Its moments "
            "would carry one unit's data into the next, and it has parameters from before the layers were adapted. "
            "Create the optimizer inside configure_optimizers; in a LightningCLI, take an `OptimizerCallable` "
            "argument instead of --optimizer."
        )


def check_every_optimizer(trainer: pl.Trainer, module: pl.LightningModule, layers: Layers) -> None:
    """Check that each of several optimizers has parameters to train at some stage.

    The second network of a GAN, for example, belongs to no layer group: it would stay unchanged, and torch would only
    report that its loss has no gradient.

    Args:
        trainer: The trainer, with its optimizers configured for the current module.
        module: The module.
        layers: Its detected layers.

    Raises:
        UnsupportedError: An optimizer holds only frozen parameters.
    """
    if len(trainer.optimizers) < 2:
        return
    trained = [*layers.head, *(path for group in layers.groups for path in group.modules)]
    reached = {id(parameter) for path in trained for parameter in module.get_submodule(path).parameters()}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for number, optimizer in enumerate(trainer.optimizers):
        held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if held and not reached.intersection(held):
            frozen = [names.get(parameter, "a parameter outside the module") for parameter in held]
            shown = ", ".join(frozen[:3]) + (f" and {len(frozen) - 3} more" if len(frozen) > 3 else "")
            raise UnsupportedError(
                f"Optimizer {number} ({type(optimizer).__name__}) holds {shown}: these are in no layer group and not "
                "in the head, so they stay frozen. To train that network at every stage, with its own copy in every "
                "unit, name it as part of the head: head=['...', '...']. Otherwise leave the optimizer out."
            )
