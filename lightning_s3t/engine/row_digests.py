"""Digests of rows' contents, so that a row which has changed under the same id is noticed."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from typing import Any

import numpy as np
from torch import Tensor

from lightning_s3t.engine.found_state.contents import bytes_of, is_plain
from lightning_s3t.errors import DataError
from lightning_s3t.tuning.fingerprint import tensor_bytes
from lightning_s3t.tuning.nested import leaves_in


def digest_row(row: Any) -> str:
    """Return a digest of a data set's item for one row.

    Args:
        row: Tensors, arrays, images, numbers, text, or tuples, lists, mappings and dataclasses of them.

    Returns:
        32 hexadecimal digits.

    Raises:
        DataError: The item contains an object that cannot be read.

    Example:
        >>> import torch
        >>> digest_row((torch.ones(2), 1)) == digest_row((torch.ones(2), 1))
        True
        >>> digest_row((torch.ones(2), 1)) == digest_row((torch.ones(2), 2))
        False
    """
    digest = hashlib.sha256()
    for path, leaf in leaves_in(row):
        digest.update(repr(path).encode())
        for part in _parts(leaf):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:32]


def _parts(leaf: Any) -> list[bytes | memoryview]:
    if isinstance(leaf, Tensor):
        return [f"{leaf.dtype} {tuple(leaf.shape)}".encode(), tensor_bytes(leaf)]
    if is_plain([leaf]):
        return [bytes_of(leaf)]
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        values = {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
        return [digest_row(values).encode()]
    if hasattr(leaf, "__array__"):  # images of PIL too
        array = np.asarray(leaf)
        if not array.dtype.hasobject:
            return [f"{array.dtype} {array.shape}".encode(), array.tobytes()]
    try:
        return [pickle.dumps(leaf, protocol=4)]
    except Exception as error:  # whatever the object's class raises
        raise DataError(
            f"A row of the train data set holds a {type(leaf).__name__} that cannot be read ({error}), so its "
            "contents have no digest. Return tensors, arrays, numbers and text from the data set, or leave "
            "digest_rows out."
        ) from error
