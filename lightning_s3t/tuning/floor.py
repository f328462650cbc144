"""The floor of an ensemble: the layer that a closed-form head replaces, and the data that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_s3t.core.floor import TASKS, FloorPart, Task
from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.tuning.layers import Layers

Targets = str | int | Callable[[Any], Any]
_BITS = (4, 8)


@dataclass(frozen=True)
class Floor:
    """A closed-form head that learns from all rows, forgets by subtraction, and never runs out of deletions.

    A ridge regression on the inputs of the pretrained network's head, over all rows of all shards. It is computed from
    sums of integers, from which a request subtracts the rows of the subject; so it is bitwise equal to the head of a
    fit without the subject. It answers together with the shards, and alone when deletions have left no
    unit: a shard has one vote for each slice that it serves, the floor twice as many as all complete shards together,
    or four times as many with `layers`.
    It costs one forward pass of the data, row by row, at the first fit, and a byte for each feature of a row.

    With `survivors`, each unit that serves gets such a head too, on its own adapted features, from all rows that it was
    not trained on. It answers together with the head that the unit was trained with. It costs a forward pass of the
    data and a byte for each feature of a row for every shard. A request that reaches the unit also removes the head,
    and the next fit builds one on the unit that serves then.

    With `layers`, the head also learns from the outputs of the network's upper layer groups, each pooled to one vector
    per row. They and the head's own input are projected to `width` features at random, but the same for every store.

    Args:
        targets: The place of the targets in a batch: a key of a mapping, the position in a tuple, or a callable that
            takes the batch. None for the second of two, or for "labels", "label", "targets", "target" or "y".
        task: "multiclass" (targets are numbers of classes), "multilabel" (0 or 1 for each output), "binary" (0 or 1,
            for one output) or "regression". None to infer it from their type and shape, if these are unambiguous.
        bits: Number of bits that a feature is rounded to, 4 to 8; the store packs them.
        target_step: Targets of a regression are rounded to multiples of it.
        survivors: Whether units that serve get heads of their own. These learn only from their head's input.
        layers: Number of layer groups, from the top one down, whose outputs are features too.
        width: The number of features with `layers`. A request takes time that grows with its square.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> Floor(bits=2)
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected argument `bits` to be an integer from 4 to 8 but got 2.
    """

    targets: Targets | None = None
    task: Task | None = None
    bits: int = 8
    target_step: float = 1e-3
    survivors: bool = False
    layers: int = 0
    width: int = 1024

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not _BITS[0] <= self.bits <= _BITS[1]:
            raise ConfigurationError(
                f"Expected argument `bits` to be an integer from {_BITS[0]} to {_BITS[1]} but got {self.bits!r}."
            )
        for name, least in (("layers", 0), ("width", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"Expected argument `{name}` to be an integer of at least {least} but got {value!r}."
                )
        if self.task is not None and self.task not in TASKS:
            raise ConfigurationError(f"Expected argument `task` to be one of {TASKS} but got {self.task!r}.")
        if not self.target_step > 0:
            raise ConfigurationError(
                f"Expected argument `target_step` to be a positive number but got {self.target_step!r}."
            )

    @classmethod
    def of(cls, given: Floor | Mapping[str, Any] | bool | None) -> Floor | None:
        """Return the floor that an argument specifies; None for none.

        Args:
            given: A floor, a mapping of its arguments, True for one with the defaults, or None or False.

        Raises:
            ConfigurationError: It is none of these.

        Example:
            >>> Floor.of(True) == Floor.of({}) == Floor()
            True
        """
        if given is None or isinstance(given, Floor):
            return given
        if isinstance(given, bool):
            return cls() if given else None
        try:
            return cls(**given)
        except TypeError as error:
            raise ConfigurationError(
                f"Expected argument `floor` to be a Floor, a mapping of its arguments, or True, but got {given!r} "
                f"({error})."
            ) from error

    def part(self, root: nn.Module, layers: Layers) -> FloorPart:
        """Return a store's settings of the floor: the layer that it replaces.

        Args:
            root: The user's module.
            layers: Its layer groups and head.

        Raises:
            ConfigurationError: There are fewer layer groups than `layers`.
            UnsupportedError: The head does not end in a linear layer.
        """
        if self.layers > len(layers.groups):
            raise ConfigurationError(
                f"Floor(layers={self.layers}) asks for more layer groups than there are ({len(layers.groups)}). Use "
                "fewer `layers`, or train with more slices or groups."
            )
        found = [
            (f"{path}.{name}" if name else path, module)
            for path in layers.head
            for name, module in root.get_submodule(path).named_modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        path, last = found[-1] if found else ("", None)
        if not isinstance(last, nn.Linear):
            raise UnsupportedError(
                f"There is no closed-form head for this model: its head ({', '.join(layers.head)}) ends in "
                f"{type(last).__name__ if last is not None else 'nothing'}, and a closed-form head takes the place of "
                "a linear layer. Name the linear layer that makes the prediction: head='...'. Otherwise leave `floor` "
                "out, or choose a method without such a head."
            )
        return FloorPart(
            layer=path,
            layers=tuple(group.modules[-1] for group in layers.groups[: self.layers]),
            width=self.width if self.layers else last.in_features,
            outputs=last.out_features,
            bits=self.bits,
            target_step=float(self.target_step),
        )
