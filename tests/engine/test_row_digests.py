"""Digests of rows' contents."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_s3t.engine.row_digests import digest_row
from lightning_s3t.errors import DataError


@dataclass
class Sample:
    pixels: Any
    label: int


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, dtype=np.uint8))


ROWS: dict[str, tuple[Any, Any, Any]] = {
    "tensor": (torch.arange(6.0), torch.arange(6.0), torch.arange(6.0) + 1e-6),
    "a view of a large tensor": (torch.zeros(9, 2)[3], torch.ones(9, 2)[3] * 0, torch.ones(9, 2)[3]),
    "array": ((np.ones(3), 1), (np.ones(3), 1), (np.zeros(3), 1)),
    "image": ({"image": picture(1)}, {"image": picture(1)}, {"image": picture(2)}),
    "text": (["a", "b"], ["a", "b"], ["ab", ""]),
    "dataclass": (Sample(torch.ones(2), 1), Sample(torch.ones(2), 1), Sample(torch.ones(2), 2)),
    "object": (Sample({3}, 1), Sample({3}, 1), Sample({4}, 1)),
}


@pytest.mark.parametrize("kind", ROWS)
def test_equal_rows_have_equal_digests_and_others_have_not(kind: str) -> None:
    row, same, other = ROWS[kind]
    assert digest_row(row) == digest_row(same) != digest_row(other)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="holds a lock that cannot be read"):
        digest_row((1, Lock()))
