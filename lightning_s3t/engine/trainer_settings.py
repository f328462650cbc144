"""The settings of a trainer that affect training: its own, and those of its optimizers, schedulers and callbacks."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelPruning,
    WeightAveraging,
)
from lightning.pytorch.utilities.types import LRSchedulerConfig

# Lightning's own: the effect of a script's class is unknown, and a fit warns if its contents have changed
_LEARNING_CALLBACKS = (EarlyStopping, GradientAccumulationScheduler, ModelPruning, WeightAveraging)
# arguments that change messages, not training
_SAID = ("verbose", "log_rank_zero_only", "device")
_SAMPLED_STEPS = (0, 1, 2, 3, 5, 10, 100, 1000)


def trainer_settings(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the trainer's settings that affect training, JSON-ready.

    Args:
        trainer: The trainer, with its optimizers configured.
    """
    loop = trainer.fit_loop
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {
        "max_epochs": loop.max_epochs,
        "min_epochs": loop.min_epochs,
        "max_steps": loop.max_steps,
        "min_steps": loop.min_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": str(trainer.gradient_clip_algorithm) if trainer.gradient_clip_algorithm else None,
        "limit_train_batches": trainer.limit_train_batches,
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
        "optimizers": [_optimizer_settings(optimizer) for optimizer in trainer.optimizers],
        "schedulers": [_scheduler_settings(config) for config in trainer.lr_scheduler_configs],
        "callbacks": [
            _callback_settings(callback) for callback in callbacks if isinstance(callback, _LEARNING_CALLBACKS)
        ],
    }


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a mapping's values that JSON holds, in mappings within it too.

    Args:
        values: Any mapping with string keys.

    Example:
        >>> plain({"lr": 0.1, "betas": (0.9, 0.99), "f": print})
        {'lr': 0.1, 'betas': [0.9, 0.99]}
        >>> plain({"decay": {"rate": 0.5, "f": print}})
        {'decay': {'rate': 0.5}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, (str, int, float, bool)) or value is None:
            found[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(x, (str, int, float, bool)) for x in value):
            found[name] = list(value)
        elif isinstance(value, Mapping):
            found[str(name)] = plain(value)
    return found


def _optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    defaults = plain(optimizer.defaults)
    groups = [
        plain({name: value for name, value in group.items() if name != "params"}) for group in optimizer.param_groups
    ]
    return {
        "class": type(optimizer).__name__,
        **defaults,
        "groups": [
            {name: value for name, value in group.items() if defaults.get(name, ...) != value} for group in groups
        ],
    }


def _scheduler_settings(config: LRSchedulerConfig) -> dict[str, Any]:
    how = {"interval": config.interval, "frequency": config.frequency, "monitor": config.monitor}
    return {**how, **_scheduler(config.scheduler)}


def _scheduler(scheduler: Any) -> dict[str, Any]:
    """Returns a scheduler's values before its first step, and those of the schedulers and functions in it."""
    values = {name: value for name, value in vars(scheduler).items() if not name.startswith("_")}
    found = {"class": type(scheduler).__name__, **plain(values)}
    within = vars(scheduler).get("_schedulers", ())  # of a SequentialLR or ChainedScheduler
    if within:
        milestones = plain({"milestones": vars(scheduler).get("_milestones")})
        found |= {**milestones, "schedulers": [_scheduler(part) for part in within]}
    functions = [function for function in values.get("lr_lambdas", ()) if callable(function)]
    if functions:
        found["lr_lambdas"] = [{**_function(function), "values": _sampled(function)} for function in functions]
    return found


def _callback_settings(callback: pl.Callback) -> dict[str, Any]:
    """Return a callback's arguments, as far as it keeps them under their names."""
    given = {}
    for name in inspect.signature(type(callback).__init__).parameters:
        for kept in (name, f"_{name}"):
            if kept in vars(callback) and name not in _SAID:
                given[name] = vars(callback)[kept]
    functions = {n: _function(f) for n, f in {**given, **vars(callback).get("_kwargs", {})}.items() if callable(f)}
    return {"class": type(callback).__name__, **plain(given), **functions}


def _function(function: Any) -> dict[str, Any]:
    """Returns a function's name and the plain values that it holds."""
    if isinstance(function, functools.partial):
        return {**_function(function.func), **plain({"args": function.args, "keywords": function.keywords})}
    function = inspect.unwrap(function)  # torch.no_grad() wraps the averaging function
    found = {"function": getattr(function, "__qualname__", type(function).__name__)}
    if isinstance(function, types.FunctionType) and function.__closure__:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        # a cell that is not filled yet does not have contents
        found |= plain({name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()})
    return found


def _sampled(function: Any) -> list[float | None]:
    """Returns a learning rate's factor at some steps; None where it cannot be asked for."""
    return [_asked(function, step) for step in _SAMPLED_STEPS]


def _asked(function: Any, step: int) -> float | None:
    try:
        return float(function(step))
    except Exception:  # whatever a script's own function raises at a step that it does not expect
        return None
