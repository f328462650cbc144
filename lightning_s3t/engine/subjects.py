"""Subjects: who owns each row of a data set."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset

from lightning_s3t.errors import DataError
from lightning_s3t.plan import canonical_subject

# text first: jsonargparse writes a config with the first matching member, and cannot write text as a callable
Subjects = str | Callable[[Any], Sequence[Any]]


def subjects_of(dataset: Any, subjects: Subjects) -> list[str]:
    """Returns the canonical subject id of every row.

    Args:
        dataset: The data set.
        subjects: The name of an attribute, a callable or its import path, or "index" for the row's number in the
            innermost data set, whatever `Subset` has picked it; "part:row" where several are concatenated.

    Raises:
        DataError: The ids are missing, or are not one per row.

    Example:
        >>> subjects_of(["x", "y"], lambda rows: [f"user-{row}" for row in rows])
        ['user-x', 'user-y']
        >>> subjects_of(["x", "y"], "index")
        ['0', '1']
        >>> subjects_of(Subset(["x", "y", "z"], [2, 0]), "index")
        ['2', '0']
    """
    size = len(dataset)
    if subjects == "index":
        return _innermost_rows(dataset)
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
        "load; otherwise no unit can be reproduced bit for bit. Sort the rows (sorted(paths), ORDER BY), and give "
        "random_split a generator with a fixed seed."
    )


def _innermost_rows(dataset: Any) -> list[str]:
    """Returns each row's number in the data set that it comes from.

    After the next random split, an index within a split would belong to another row, and forgotten rows would come
    back.
    """
    parts = {id(part): number for number, part in enumerate(_innermost(dataset))}
    rows = _rows_of(dataset)
    return [row if len(parts) == 1 else f"{parts[id(part)]}:{row}" for part, row in rows]


def _innermost(dataset: Any) -> list[Any]:
    """Returns the data sets that rows are picked from, each once, in the order of their concatenation."""
    if isinstance(dataset, Subset):
        return _innermost(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        found = [inner for part in dataset.datasets for inner in _innermost(part)]
        return list({id(part): part for part in found}.values())
    return [dataset]


def _rows_of(dataset: Any) -> list[tuple[Any, str]]:
    """Returns the innermost data set of each row, and the row's number in it."""
    if isinstance(dataset, Subset):
        rows = _rows_of(dataset.dataset)
        return [rows[int(index)] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [row for part in dataset.datasets for row in _rows_of(part)]
    if isinstance(dataset, StackDataset):
        return [(dataset, row) for row in _rows_of_stack(dataset)]
    return [(dataset, str(row)) for row in range(len(dataset))]


def _rows_of_stack(dataset: StackDataset) -> list[str]:
    parts = dataset.datasets
    first, *others = (_innermost_rows(part) for part in (parts.values() if isinstance(parts, dict) else parts))
    if any(other != first for other in others):
        raise DataError(
            'The StackDataset combines rows with different indices, so "index" does not name a row. '
            "Expected parts that are split in the same way, or `subjects` that says who owns each row."
        )
    return first


def _named(dataset: Any, name: str) -> Any:
    if "." not in name or hasattr(dataset, name):
        return _attribute(dataset, name)
    module, _, function = name.rpartition(".")
    try:
        give = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"`subjects` is {name!r}, which cannot be imported ({error}). Expected the import path of a callable that "
            "takes the data set, or the name of one of its attributes."
        ) from error
    return give(dataset)


def _attribute(dataset: Any, name: str) -> Any:
    if hasattr(dataset, name):
        return getattr(dataset, name)
    if isinstance(dataset, Subset):
        ids = _attribute(dataset.dataset, name)
        return [ids[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [owner for part in dataset.datasets for owner in _attribute(part, name)]
    names = (
        ", ".join(sorted(key for key in vars(dataset) if not key.startswith("_")))
        if hasattr(dataset, "__dict__")
        else ""
    )
    raise DataError(
        f"The train data set {type(dataset).__name__} has no attribute {name!r} (found: {names or 'none'}). Expected "
        "`subjects` to name one that holds an id per row, or to be a callable that takes the data set."
    )
