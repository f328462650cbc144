"""The guard, and the fingerprints that it compares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_s3t.errors import LeakageError
from lightning_s3t.tuning.fingerprint import digest_tensors, fingerprint, fingerprints
from lightning_s3t.tuning.guard import LeakageGuard


def make() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net.register_buffer("seen", torch.zeros(2), persistent=False)
    return net


OWNED = ["2.weight", "2.bias"]


def test_what_is_owned_may_change() -> None:
    net = make()
    guard = LeakageGuard(net, OWNED)
    net[2].weight.data.add_(1)
    net[2].weight = nn.Parameter(torch.zeros(2, 2))
    guard.check("it")


def change_frozen(net: nn.Sequential) -> None:
    net[0].weight.data[0, 0] += 1e-7


def change_statistics(net: nn.Sequential) -> None:
    net.train()(torch.randn(4, 2))


def change_buffer(net: nn.Sequential) -> None:
    net.seen += 1


def replace_buffer(net: nn.Sequential) -> None:
    net.seen = torch.ones(2)


def add_buffer(net: nn.Sequential) -> None:
    net.register_buffer("more", torch.zeros(1))


def drop_buffer(net: nn.Sequential) -> None:
    del net.seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_frozen, r"While it was trained, what it does not own changed: 0\.weight\."),
        (change_statistics, r"1\.num_batches_tracked, 1\.running_mean, 1\.running_var"),
        (change_buffer, "seen"),
        (replace_buffer, "seen"),
        (add_buffer, r"more \(new\)"),
        (drop_buffer, r"seen \(gone\)"),
    ],
)
def test_everything_else_is_named_when_it_changes(change: object, message: str) -> None:
    net = make()
    guard = LeakageGuard(net, OWNED)
    change(net)  # type: ignore[operator]
    with pytest.raises(LeakageError, match=message):
        guard.check("it")


def test_originals_that_were_swapped_out_are_watched_too() -> None:
    original = nn.Linear(1, 1)
    guard = LeakageGuard(make(), OWNED, {"head": original})
    original.weight.data.zero_()
    with pytest.raises(LeakageError, match=r"head\.weight \(pretrained\)"):
        guard.check("it")


def test_an_owned_tensor_under_a_second_name_is_owned() -> None:
    net = make()
    net.alias = net[2]
    guard = LeakageGuard(net, OWNED)
    net[2].weight.data.add_(1)
    guard.check("it")


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprints_see_a_change_in_any_dtype(dtype: torch.dtype) -> None:
    tensor = torch.zeros(5).to(dtype)
    other = tensor.clone()
    other[3] = 1
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert fingerprint(tensor) != fingerprint(other)


@given(st.integers(1, 300), st.data())
def test_fingerprints_see_every_single_flipped_bit(size: int, data: st.DataObject) -> None:
    tensor = torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32)
    flipped = tensor.clone()
    flipped[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 30))
    assert fingerprint(tensor) != fingerprint(flipped)


def payload(bits: int) -> Tensor:
    return torch.tensor([bits], dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (payload(0x7FC00001), payload(0x7FC00002)),
        (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])),
    ],
)
def test_fingerprints_and_digests_compare_bits_and_places(first: Tensor, second: Tensor) -> None:
    assert fingerprint(first) != fingerprint(second)
    assert digest_tensors({"x": first}) != digest_tensors({"x": second})


def test_strides_and_empty_tensors_are_no_matter() -> None:
    tensor = torch.randn(3, 4)
    assert fingerprint(tensor.t().contiguous()) == fingerprint(tensor.t())
    assert fingerprints({"empty": torch.empty(0, 3), "scalar": torch.tensor(0)}) == {"empty": 0, "scalar": 0}
    assert digest_tensors({"x": tensor.t()}) == digest_tensors({"x": tensor.t().contiguous()})


def test_a_buffer_of_the_module_itself_is_told_how_to_become_the_units_own() -> None:
    net = nn.Linear(1, 1)
    net.register_buffer("bank", torch.zeros(2))
    guard = LeakageGuard(net, owned=[])
    net.bank += 1
    with pytest.raises(LeakageError, match=r"move bank into a module of its own .*head=\['\.\.\.', 'memory'\]"):
        guard.check("unit 0/0")
