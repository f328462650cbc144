"""Restoring the complete earlier state of objects, including parts that `state_dict` leaves out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_s3t.errors import UnsupportedError

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
# hyperparameters are arguments, not state, and may hold whatever a user passed
_SKIPPED = frozenset({"_hparams", "_hparams_initial", "_hparams_name"})


class StateKeeper:
    """Copies the attributes of objects and restores them, any number of times.

    A callback's `state_dict` is not all of its state: weight averages, counters and flags outside it would carry one
    unit's data into the next. Here the whole of `vars(object)` is copied. References to shared objects (the trainer,
    modules, loggers, data) stay references.

    Args:
        objects: The objects, by a name for messages.
        shared: Objects that are referred to, not copied.

    Raises:
        UnsupportedError: An attribute cannot be copied, so it could not be reset between units.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> stopping = EarlyStopping("loss")
        >>> keeper = StateKeeper({"EarlyStopping": stopping}, shared=[])
        >>> stopping.wait_count = 7
        >>> keeper.restore()
        >>> stopping.wait_count
        0
    """

    def __init__(self, objects: Mapping[str, object], shared: Iterable[object]) -> None:
        self._objects = dict(objects)
        self._shared = {id(instance): instance for instance in (*shared, *self._objects.values())}
        self._kept = {name: self._copy(name, self._attributes(instance)) for name, instance in self._objects.items()}
        self._hooks = {name: _hooks(instance) for name, instance in self._objects.items()}

    def restore(self) -> None:
        """Restore the copied state of every object."""
        for name, instance in self._objects.items():
            attributes = vars(instance)
            for key in self._attributes(instance):
                del attributes[key]
            attributes.update(self._copy(name, self._kept[name]))
            for key, hooks in self._hooks[name].items():
                attributes[key].clear()
                attributes[key].update(hooks)

    def _attributes(self, instance: object) -> dict[str, Any]:
        if not isinstance(instance, nn.Module):
            return dict(vars(instance))
        skipped = _MODULE_ATTRIBUTES | _SKIPPED
        if isinstance(instance, pl.LightningModule):
            skipped = skipped | _lightning_attributes()
        return {key: value for key, value in vars(instance).items() if key not in skipped}

    def _copy(self, name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        # one memo per object: copies must not be shared between two rounds
        memo = dict(self._shared)
        copied: dict[str, Any] = {}
        for key, value in attributes.items():
            if isinstance(value, (Dataset, DataLoader)):
                copied[key] = value
                continue
            try:
                copied[key] = copy.deepcopy(value, memo)
            except Exception as error:
                raise UnsupportedError(
                    f"{name}.{key} ({type(value).__name__}) cannot be copied ({error}), so it cannot be reset between "
                    "units, and might carry data from one unit to the next. Give the object a __deepcopy__, or keep "
                    "it outside the module and the callbacks."
                ) from error
        return copied


def keep_module(module: pl.LightningModule, shared: Iterable[object]) -> StateKeeper:
    """Keeps the plain attributes of a module and of all modules below it (running averages, metric states, lists).

    Parameters and buffers are not part of it: a guard checks those that a unit does not own, the others are its own.

    Args:
        module: The module.
        shared: Objects that are referred to, not copied.
    """
    modules = {
        f"{type(module).__name__}.{name}" if name else type(module).__name__: m for name, m in module.named_modules()
    }
    tensors = [*module.parameters(), *module.buffers()]
    return StateKeeper(modules, shared=[*shared, *tensors])


def _hooks(instance: object) -> dict[str, dict[Any, Any]]:
    """Returns a module's hooks: one that a step registers would otherwise be there twice in the next unit."""
    if not isinstance(instance, nn.Module):
        return {}
    return {key: dict(value) for key, value in vars(instance).items() if key.endswith("_hooks") and value is not None}


def _lightning_attributes() -> frozenset[str]:
    return frozenset(vars(pl.LightningModule()))
