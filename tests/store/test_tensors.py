"""Tensors in and out of a snapshot: every bit, and equal bytes for equal tensors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.snapshots.snapshots import SnapshotFolder
from lightning_s3t.store.snapshots.tensors import decode_snapshot, encode_snapshot
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
UNIT = UnitId(0, (0,))
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def bits(tensor: Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).numpy())


def any_bits(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    """Any bits at all: NaNs with their payload, denormals, both zeros."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(256, (math.prod(shape) * size,), generator=generator).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


def round_trip(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with Store.create(folder / "store", SETTINGS) as store:
        session(store).start_unit(UNIT, "key").commit(tensors, {})
        return store.load(UNIT)


def assert_equal_bits(found: Tensor, kept: Tensor) -> None:
    assert (found.dtype, found.shape) == (kept.dtype, kept.shape)
    assert bits(found) == bits(kept)


@given(st.sampled_from(DTYPES), SHAPES, st.integers(0, 2**31))
def test_any_bits_of_any_type_and_shape_come_back(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int], seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "snapshots").mkdir(exist_ok=True)
    kept = any_bits(dtype, shape, seed)
    digest, data = encode_snapshot({"x": kept})
    snapshots = SnapshotFolder(folder)
    snapshots.put(digest, data)
    assert_equal_bits(decode_snapshot(snapshots.get(digest, "x"), "x")["x"], kept)


@given(st.sampled_from(DTYPES), SHAPES, st.integers(0, 2**31))
def test_equal_tensors_have_equal_bytes_and_others_have_not(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    kept = any_bits(dtype, shape, seed)
    assert encode_snapshot({"x": kept}) == encode_snapshot({"x": kept.clone()})
    assert encode_snapshot({"x": kept}) != encode_snapshot({"y": kept})
    assert encode_snapshot({"x": kept}) != encode_snapshot({"x": kept[None]})
    if kept.numel():
        other = kept.clone().reshape(-1).view(torch.uint8)
        other[-1] ^= 1
        assert encode_snapshot({"x": kept}) != encode_snapshot({"x": other.view(dtype).reshape(shape)})


MATRIX = torch.arange(24.0).reshape(4, 6)
COMPLEX = torch.complex(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0]))
VIEWS = {
    "transposed": MATRIX.t(),
    "every second": MATRIX[::2, 1::2],
    "expanded": torch.ones(1, 3).expand(5, 3),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "flipped": MATRIX.flip(0),
    "conjugate": COMPLEX.conj(),
    "imaginary part of a conjugate": COMPLEX.conj().imag,
    "parameter": nn.Parameter(MATRIX),
    "result of a computation": nn.Parameter(MATRIX) * 2,
    "scalar": torch.tensor(-0.0),
    "nothing": torch.empty(0, 3),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_comes_back_as_what_it_shows(tmp_path: Path, name: str) -> None:
    found = round_trip(tmp_path, {"x": VIEWS[name]})["x"]
    assert_equal_bits(found, VIEWS[name])
    assert not found.requires_grad


def test_tensors_that_share_memory_come_back_each_with_its_own(tmp_path: Path) -> None:
    tied = nn.Linear(3, 3)
    found = round_trip(tmp_path, {"embedding": tied.weight, "head": tied.weight, "row": tied.weight[0]})
    found["embedding"].zero_()
    assert_equal_bits(found["head"], tied.weight)
    assert_equal_bits(found["row"], tied.weight[0])


def test_what_is_kept_does_not_change_with_the_model_afterwards(tmp_path: Path) -> None:
    weight = torch.ones(3)
    with Store.create(tmp_path / "store", SETTINGS) as store:
        session(store).start_unit(UNIT, "key").commit({"w": weight}, {})
        weight.zero_()
        store.load(UNIT)["w"].fill_(7)
        assert torch.equal(store.load(UNIT)["w"], torch.ones(3))


def test_a_unit_may_own_nothing(tmp_path: Path) -> None:
    assert round_trip(tmp_path, {}) == {}


@pytest.mark.parametrize("name", ["", "a.b.c", "ü\N{SNOWMAN}", "a/b", "with space\nand line", "__metadata__"])
def test_tensors_may_have_any_name(tmp_path: Path, name: str) -> None:
    assert_equal_bits(round_trip(tmp_path, {name: torch.ones(2)})[name], torch.ones(2))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1, dtype=torch.complex128), torch.eye(2).to_sparse(), torch.empty(2, device="meta")],
    ids=["a type that safetensors does not have", "sparse", "meta"],
)
def test_a_tensor_that_cannot_be_kept_is_refused_by_name_and_nothing_is_left(tmp_path: Path, tensor: Tensor) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        with pytest.raises(StoreError, match=r"head\.weight"):
            session(store).start_unit(UNIT, "key").commit({"head.weight": tensor}, {})
        assert store.alive() == {}
        assert list((store.path / "snapshots").iterdir()) == []


def test_the_base_comes_back_and_outlives_a_unit_with_equal_tensors(tmp_path: Path) -> None:
    head = {"head.weight": torch.randn(2, 3), "head.bias": torch.zeros(2)}
    with Store.create(tmp_path / "store", SETTINGS) as store:
        session(store).save_base(head)
        session(store).start_unit(UNIT, "key").commit(head, {})
        session(store).drop([UNIT])
    with Store.open(tmp_path / "store") as store:
        base = store.load_base()
        assert base is not None
        for name, tensor in head.items():
            assert_equal_bits(base[name], tensor)
