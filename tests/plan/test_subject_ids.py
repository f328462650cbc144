"""Subjects' ids: one spelling for one subject, and a refusal for what has none."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import DataError
from lightning_s3t.plan import Partition, Place, canonical_subject

INTEGERS = st.integers(-(2**63), 2**63 - 1)


class Name(str, enum.Enum):
    ANN = "ann"


class Number(enum.IntEnum):
    SEVENTEEN = 17


@given(INTEGERS)
def test_an_integer_is_the_same_subject_in_every_type_that_holds_it(number: int) -> None:
    spellings = [number, str(number), np.int64(number), np.array(number), torch.tensor(number)]
    assert {canonical_subject(spelling) for spelling in spellings} == {str(number)}


@given(st.text(min_size=1))
def test_text_is_taken_as_it_is(subject: str) -> None:
    assert canonical_subject(subject) == subject


@given(st.one_of(INTEGERS, st.text(min_size=1)))
def test_a_canonical_id_is_its_own_canonical_id(subject: object) -> None:
    assert canonical_subject(canonical_subject(subject)) == canonical_subject(subject)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_tensors_of_every_integer_type_are_ids(dtype: torch.dtype) -> None:
    assert canonical_subject(torch.tensor(17, dtype=dtype)) == "17"


def test_numpys_text_is_text() -> None:
    assert canonical_subject(np.array(["ann"])[0]) == "ann"
    assert type(canonical_subject(np.str_("ann"))) is str


def test_members_of_enumerations_are_what_they_are_equal_to() -> None:
    assert canonical_subject(Number.SEVENTEEN) == "17"
    assert canonical_subject(Name.ANN) == "ann"


@pytest.mark.parametrize("subject", ["17 ", "017", "+17", "1_7", "\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT SEVEN}"])
def test_text_that_only_looks_like_a_number_is_another_subject(subject: str) -> None:
    assert canonical_subject(subject) != canonical_subject(17)


@pytest.mark.parametrize("subject", [True, np.bool_(True), torch.tensor(True)])
def test_truth_values_are_refused_in_every_type(subject: object) -> None:
    with pytest.raises(DataError, match="Expected a non-empty string or an integer"):
        canonical_subject(subject)


@pytest.mark.parametrize(
    "subject",
    [
        torch.tensor(17.0),
        np.float64(17),
        17 + 0j,
        decimal.Decimal(17),
        uuid.UUID(int=17),
        datetime.date(2026, 1, 1),
        bytearray(b"17"),
        ("17",),
        {"17"},
    ],
    ids=lambda subject: type(subject).__name__,
)
def test_types_without_one_spelling_are_refused_by_name(subject: object) -> None:
    with pytest.raises(DataError, match=rf"\({type(subject).__name__}\).*convert the ids before you pass them"):
        canonical_subject(subject)


@pytest.mark.parametrize("subject", [torch.tensor([17]), torch.tensor([[17]]), np.array([17]), torch.tensor([1, 2])])
def test_arrays_with_dimensions_are_refused(subject: object) -> None:
    with pytest.raises(DataError, match="Expected a non-empty string or an integer"):
        canonical_subject(subject)


def test_text_that_cannot_be_encoded_is_refused_or_has_a_place() -> None:
    name = b"scan-\xff.png".decode("utf-8", "surrogateescape")  # as `os.listdir` gives it
    try:
        subject = canonical_subject(name)
    except DataError:
        return
    assert Partition(1, 1).place(subject) == Place(0, 0)
