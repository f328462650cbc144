"""The labels in a batch: their place, and replacing them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError, UnsupportedError

LabelPlace = str | int | None
"""The key or the position of the labels in a batch; None to find them."""

_KEYS = ("labels", "label", "targets", "target", "y")


def check_label_place(place: Any) -> None:
    """Raise unless an argument names a place of labels.

    Args:
        place: The argument `labels`.

    Raises:
        ConfigurationError: It is not.
    """
    if place is not None and (isinstance(place, bool) or not isinstance(place, (str, int))):
        raise ConfigurationError(
            f"Expected argument `labels` to be a key, a position, or None to find them, but got {place!r}."
        )


def labels_of(batch: Any, place: LabelPlace = None) -> Tensor:
    """Return the labels in a batch: one class for each row.

    Args:
        batch: A batch: a tuple or list, or a mapping.
        place: Their place. Left out, the second of two, or the entry "labels", "label", "targets", "target" or "y".

    Returns:
        Shape `[rows]`, whole numbers.

    Raises:
        UnsupportedError: They are not there, or not one class a row.

    Example:
        >>> labels_of((torch.zeros(2, 4), torch.tensor([1, 0])))
        tensor([1, 0])
    """
    labels = batch[_find(batch, place)]
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        found = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UnsupportedError(
            f"The method needs one class for each row, but the labels in a batch are {found}. Use a method that does "
            "not read labels."
        )
    return labels


def with_labels(batch: Any, labels: Tensor, place: LabelPlace = None) -> Any:
    """Return a batch with other labels.

    Args:
        batch: A batch; it is not changed.
        labels: Shape `[rows]`.
        place: As for `labels_of`.

    Example:
        >>> with_labels({"x": 1, "y": torch.tensor([0])}, torch.tensor([1]))
        {'x': 1, 'y': tensor([1])}
    """
    key = _find(batch, place)
    labels = labels.to(batch[key].dtype)
    if isinstance(batch, MutableMapping):
        changed = copy.copy(batch)
        changed[key] = labels
        return changed
    items = [labels if number == key % len(batch) else item for number, item in enumerate(batch)]
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)


def wrong_labels(labels: Tensor, shifts: Tensor, classes: int) -> Tensor:
    """Return other classes than the true ones.

    Args:
        labels: The true classes, shape `[rows]`.
        shifts: Offsets of the classes, 1 to `classes` - 1, shape `[rows]`; with uniform draws every wrong class is
            equally likely.
        classes: Number of classes.

    Raises:
        UnsupportedError: There is a class outside of 0 to `classes` - 1, or there is only one.

    Example:
        >>> wrong_labels(torch.tensor([0, 2]), torch.tensor([1, 2]), classes=3)
        tensor([1, 1])
    """
    if classes < 2 or bool(((labels < 0) | (labels >= classes)).any()):
        raise UnsupportedError(
            f"The method draws a wrong class for each row, but the network returned {classes} columns for labels from "
            f"{int(labels.min())} to {int(labels.max())}. Expected one column per class, and at least two."
        )
    return (labels + shifts.to(labels)) % classes


def draw_shifts(rows: int, classes: int, generator: torch.Generator) -> Tensor:
    """Draw, for each row, how far its wrong class is from the true one, for `wrong_labels`.

    Args:
        rows: Number of rows.
        classes: Number of classes.
        generator: The random generator.
    """
    return torch.randint(1, max(classes, 2), (rows,), generator=generator)


def _find(batch: Any, place: LabelPlace) -> Any:
    if isinstance(batch, Mapping):
        keys = [key for key in ((place,) if place is not None else _KEYS) if key in batch]
        if len(keys) == 1:
            return keys[0]
    elif isinstance(batch, (tuple, list)):
        if isinstance(place, int) and -len(batch) <= place < len(batch):
            return place
        if place is None and len(batch) == 2:
            return 1
    found = f"keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
    raise UnsupportedError(
        f"The method needs the labels of a batch, but found none ({found}; labels={place!r}). Name their place with "
        "`labels`: a key or a position."
    )
