"""Fingerprints and digests: which differences between tensors they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_s3t.tuning.fingerprint import _weights, digest_tensors, fingerprint, fingerprints, tensor_bytes

WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


def differ(first: Tensor, second: Tensor) -> bool:
    return bool(fingerprint(first) != fingerprint(second))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_shows_a_single_changed_element(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0, 1, 0, 1]).to(dtype)
    for place in range(4):
        other = tensor.clone()
        other[place] = torch.tensor(1).to(dtype) if place % 2 == 0 else torch.tensor(0).to(dtype)
        assert differ(tensor, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_can_be_empty(dtype: torch.dtype) -> None:
    assert fingerprint(torch.empty(0, 3, dtype=dtype)) == 0
    assert digest_tensors({"x": torch.empty(0, dtype=dtype)}) != digest_tensors({})


@given(st.integers(1, 100), st.sampled_from(sorted(WIDTHS)), st.data())
def test_any_single_flipped_bit_shows(size: int, width: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(size)
    tensor = torch.randint(0, 256, (size * width,), generator=generator, dtype=torch.uint8)
    flipped = tensor.clone()
    flipped[data.draw(st.integers(0, size * width - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert differ(tensor.view(WIDTHS[width]), flipped.view(WIDTHS[width]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sign_of_a_zero_shows(dtype: torch.dtype) -> None:
    assert differ(torch.zeros(3, dtype=dtype), torch.tensor([0.0, -0.0, 0.0], dtype=dtype))


def test_the_payload_of_a_nan_shows() -> None:
    first, second = (torch.tensor([bits]).view(torch.float64) for bits in (0x7FF8000000000001, 0x7FF8000000000002))
    assert first.isnan()
    assert second.isnan()
    assert differ(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.complex128])
def test_two_swapped_elements_show(dtype: torch.dtype) -> None:
    tensor = torch.tensor([3, 1, 2]).to(dtype)
    assert differ(tensor, tensor[[0, 2, 1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex128])
def test_the_negation_of_a_whole_tensor_shows(dtype: torch.dtype) -> None:
    # a sign is the highest bit: in a sum modulo 2**64, two of a 64-bit dtype's must not cancel out
    tensor = torch.arange(1, 5).to(dtype)
    assert differ(tensor, -tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swapped_elements_that_differ_in_sign_alone_show(dtype: torch.dtype) -> None:
    assert differ(torch.tensor([1.0, -1.0], dtype=dtype), torch.tensor([-1.0, 1.0], dtype=dtype))


@given(st.sets(st.integers(0, 19), min_size=1), st.integers(0, 62))
def test_any_set_of_flipped_bits_at_one_position_shows(places: set[int], bit: int) -> None:
    tensor = torch.arange(20)
    flipped = tensor.clone()
    for place in places:
        flipped[place] ^= 1 << bit
    assert differ(tensor, flipped)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.t().contiguous().t(),
    "sliced": lambda x: torch.stack([x, x], -1)[..., 0],
    "with a gradient": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_contents_in_another_layout_are_equal(layout: str) -> None:
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert not differ(tensor, LAYOUTS[layout](tensor))
    assert digest_tensors({"x": tensor}) == digest_tensors({"x": LAYOUTS[layout](tensor)})


# of bytes: rows of a megabyte are mixed at once, and words of eight
SIZES = [1, 7, 8, 9, 1 << 20, (1 << 20) - 1, (1 << 20) + 1, (3 << 20) + 5]


@pytest.mark.parametrize("size", SIZES)
def test_a_change_at_either_end_shows_at_every_size(size: int) -> None:
    tensor = torch.zeros(size, dtype=torch.uint8)
    for place in (0, -1):
        other = tensor.clone()
        other[place] = 1
        assert differ(tensor, other)


@pytest.mark.parametrize("place", [0, 1 << 20, 2 << 20, 3 << 20])
def test_the_place_of_a_whole_row_counts(place: int) -> None:
    first, second = torch.zeros(2, (3 << 20) + 16, dtype=torch.uint8)
    first[8], second[place + (16 if place == 0 else 8)] = 1, 1
    assert differ(first, second)


def test_two_swapped_rows_show() -> None:
    rows = torch.randn(3, 1 << 18, generator=torch.Generator().manual_seed(0))
    assert differ(rows, rows[[0, 2, 1]])


def test_all_places_of_a_row_weigh_differently() -> None:
    weights = _weights(torch.device("cpu"))
    assert len(weights.unique()) == len(weights)
    assert bool((weights % 2 != 0).all())


@pytest.mark.parametrize("start", range(1, 8))
def test_a_view_into_the_middle_of_memory_is_as_its_copy(start: int) -> None:
    tensor = torch.arange(40, dtype=torch.uint8)[start : start + 16]
    assert not differ(tensor, tensor.clone())


def test_a_conjugate_is_as_its_copy() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert not differ(tensor.conj(), tensor.conj().resolve_conj())
    assert differ(tensor.conj(), tensor)


def test_many_are_fingerprinted_as_one_by_one_and_in_order() -> None:
    tensors = {"b": torch.ones(2), "a": torch.arange(3), "c": torch.empty(0)}
    found = fingerprints(tensors)
    assert list(found) == ["b", "a", "c"]
    assert found == {name: int(fingerprint(tensor)) for name, tensor in tensors.items()}
    assert fingerprints({}) == {}


def test_views_of_one_memory_are_told_apart() -> None:
    memory = torch.arange(6.0)
    views = {
        "whole": memory,
        "again": memory.view(6),
        "rows": memory.view(2, 3),
        "columns": memory.view(3, 2).t(),
        "part": memory[:3],
        "negated": torch.complex(memory, memory).conj().imag,
        "bits": memory.view(torch.int32),
        "every other": memory[::2],
    }
    assert fingerprints(views) == {name: int(fingerprint(view.clone())) for name, view in views.items()}


class Wrapper(Tensor):
    """A tensor that keeps its values elsewhere, as quantized ones do: its own memory has no address."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Wrapper:
        made = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*[arg.values if isinstance(arg, Wrapper) else arg for arg in args], **(kwargs or {}))


def test_tensors_that_keep_their_values_elsewhere_are_told_apart() -> None:
    tensors = {"zeros": Wrapper(torch.zeros(3)), "ones": Wrapper(torch.ones(3))}
    assert fingerprints(tensors) == fingerprints({"zeros": torch.zeros(3), "ones": torch.ones(3)})


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.zeros(2)},
        {"w": torch.zeros(1, 2)},
        {"w": torch.zeros(2, dtype=torch.int32)},
        {"w": torch.tensor([0.0, -0.0])},
        {"w": torch.zeros(2), "v": torch.zeros(0)},
        {},
    ],
    ids=["name", "shape", "dtype", "sign of zero", "one more", "none"],
)
def test_a_digest_tells_names_shapes_dtypes_and_bits_apart(other: dict[str, Tensor]) -> None:
    assert digest_tensors(other) != digest_tensors({"w": torch.zeros(2)})


def test_a_digest_does_not_depend_on_the_order_of_the_names() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    assert digest_tensors({"a": a, "b": b}) == digest_tensors({"b": b, "a": a})


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_of_the_contents(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    assert len(tensor_bytes(tensor)) == 4 * tensor.element_size()
    assert bytes(tensor_bytes(tensor.t())) == bytes(tensor_bytes(tensor.t().contiguous()))
    assert (
        bytes(tensor_bytes(torch.tensor(1).to(dtype)))
        == bytes(tensor_bytes(tensor))[: tensor.element_size() * 2][tensor.element_size() :]
    )
