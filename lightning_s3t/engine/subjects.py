"""Subjects: who owns each row of a data set."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from lightning_s3t.errors import DataError
from lightning_s3t.plan import canonical_subject

# text first: jsonargparse writes a config by the first member that fits, and has no spelling for text as a callable
Subjects = str | Callable[[Any], Sequence[Any]]


def subjects_of(dataset: Any, subjects: Subjects) -> list[str]:
    """Returns the canonical subject id of every row.

    Args:
        dataset: The data set.
        subjects: The name of an attribute, a callable or its import path, or "index" for the row's index.

    Raises:
        DataError: The ids are missing, or are not one per row.

    Example:
        >>> subjects_of(["x", "y"], lambda rows: [f"user-{row}" for row in rows])
        ['user-x', 'user-y']
        >>> subjects_of(["x", "y"], "index")
        ['0', '1']
    """
    size = len(dataset)
    if subjects == "index":
        return [str(row) for row in range(size)]
    ids: Any = _named(dataset, subjects) if isinstance(subjects, str) else subjects(dataset)
    if isinstance(ids, (torch.Tensor, np.ndarray)):
        ids = ids.tolist()
    ids = [canonical_subject(subject) for subject in ids]
    if len(ids) != size:
        raise DataError(f"`subjects` gave {len(ids)} ids for {size} rows. Expected one id per row.")
    return ids


def check_order(first: Sequence[str], second: Sequence[str]) -> None:
    """Raises if two loads of the same data set gave the ids in different orders.

    Args:
        first: The ids of one load.
        second: The ids of the next.

    Raises:
        DataError: The order differs: results would depend on the load.
    """
    if list(first) == list(second):
        return
    kind = "the same ids in another order" if Counter(first) == Counter(second) else "other ids"
    raise DataError(
        f"Loaded a second time, the train data set gives {kind}. Expected the same rows in the same order at every "
        "load, or no unit could be trained again to the same bits. Sort the rows (sorted(paths), ORDER BY)."
    )


def _named(dataset: Any, name: str) -> Any:
    if "." not in name or hasattr(dataset, name):
        return _attribute(dataset, name)
    module, _, function = name.rpartition(".")
    try:
        give = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"`subjects` is {name!r}, which cannot be imported ({error}). Expected the import path of a callable that "
            "takes the data set, or the name of an attribute of it."
        ) from error
    return give(dataset)


def _attribute(dataset: Any, name: str) -> Any:
    if hasattr(dataset, name):
        return getattr(dataset, name)
    if isinstance(dataset, Subset):
        ids = _attribute(dataset.dataset, name)
        return [ids[index] for index in dataset.indices]
    names = (
        ", ".join(sorted(key for key in vars(dataset) if not key.startswith("_")))
        if hasattr(dataset, "__dict__")
        else ""
    )
    raise DataError(
        f"The train data set {type(dataset).__name__} has no attribute {name!r} (found: {names or 'none'}). Expected "
        "`subjects` to name one that holds an id per row, or to be a callable that takes the data set."
    )
