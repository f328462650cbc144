"""Labels in batches of every form."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch

from lightning_s3t.errors import UnsupportedError
from lightning_s3t.methods.labels import labels_of, with_labels

LABELS, OTHERS = torch.tensor([0, 2]), torch.tensor([1, 1])


class Batch(NamedTuple):
    """A batch as some collate functions give it."""

    x: Any
    y: Any


BATCHES: list[tuple[Any, Any]] = [
    ((torch.zeros(2, 3), LABELS), None),
    ([torch.zeros(2, 3), LABELS], None),
    (Batch(torch.zeros(2, 3), LABELS), None),
    ({"input_ids": torch.zeros(2, 3), "labels": LABELS}, None),
    ({"image": torch.zeros(2, 3), "species": LABELS}, "species"),
    (UserDict({"image": torch.zeros(2, 3), "label": LABELS}), None),
    ((torch.zeros(2, 3), LABELS, torch.zeros(2)), 1),
    ((torch.zeros(2, 3), torch.zeros(2), LABELS), -1),
]


@pytest.mark.parametrize(("batch", "place"), BATCHES)
def test_labels_are_found_and_replaced_in_a_copy(batch: Any, place: Any) -> None:
    assert torch.equal(labels_of(batch, place), LABELS)
    changed = with_labels(batch, OTHERS, place)
    assert type(changed) is type(batch)
    assert torch.equal(labels_of(changed, place), OTHERS)
    assert torch.equal(labels_of(batch, place), LABELS)


@pytest.mark.parametrize(
    ("batch", "place"),
    [
        ((torch.zeros(2), torch.zeros(2), LABELS), None),
        ((torch.zeros(2), LABELS), 2),
        ((torch.zeros(2), LABELS), "labels"),
        ({"x": torch.zeros(2), "species": LABELS}, None),
        ({"label": LABELS, "labels": LABELS}, None),
        (LABELS, None),
    ],
)
def test_where_they_are_not_found_the_place_has_to_be_named(batch: Any, place: Any) -> None:
    with pytest.raises(UnsupportedError, match="Name their place with `labels`"):
        labels_of(batch, place)


@pytest.mark.parametrize("labels", [torch.zeros(2), torch.zeros(2, 3, dtype=torch.long), [0, 1]])
def test_anything_but_one_class_a_row_is_refused(labels: Any) -> None:
    with pytest.raises(UnsupportedError, match="one class for each row"):
        labels_of((torch.zeros(2, 3), labels))
