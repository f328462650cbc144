"""Objects arrive in another process as they were, and what is written there stays there."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_s3t.executors.processes.packing import Package, find_unpicklable, pack


class Tied(nn.Module):
    """Two layers of one weight, and a buffer that is a view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(12.0).reshape(3, 4).t())
        self.register_buffer("row", self.table[1])
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("thirds", torch.ones(3, dtype=torch.bfloat16))

    def step(self) -> int:
        return 1


@pytest.fixture
def packages() -> Iterator[Any]:
    made: list[Package] = []

    def make(objects: Any, replace: dict[int, object] | None = None) -> Package:
        made.append(pack(objects, replace or {}))
        return made[-1]

    yield make
    for package in made:
        package.close()


def test_a_module_arrives_with_its_bits_its_strides_and_what_is_tied(packages: Any) -> None:
    module = Tied()
    arrived = packages(module).load()
    for name, tensor in module.state_dict().items():
        other = arrived.state_dict()[name]
        assert (other.dtype, other.stride(), other.requires_grad) == (tensor.dtype, tensor.stride(), False)
        assert torch.equal(other, tensor)
    assert arrived.second.weight is arrived.first.weight
    assert isinstance(arrived.first.weight, nn.Parameter)
    assert arrived.row.data_ptr() == arrived.table[1].data_ptr()


def test_tensors_lie_as_torchs_own_do(packages: Any) -> None:
    tensors = packages([torch.ones(n) for n in (1, 3, 100)]).load()
    assert [tensor.data_ptr() % 64 for tensor in tensors] == [0, 0, 0]


def test_what_one_writes_the_others_and_the_sender_do_not_see(packages: Any) -> None:
    rows, table = torch.zeros(1000), np.zeros(1000)
    package = packages((rows, table))
    (first, numbers), (second, others) = package.load(), package.load()
    first.fill_(1)
    numbers[:] = 1
    for untouched in (rows, torch.from_numpy(table), second, torch.from_numpy(others)):
        assert not untouched.any()


def test_large_arrays_are_not_within_the_pickle(packages: Any) -> None:
    package = packages({"images": np.zeros((1000, 1000)), "labels": torch.zeros(1000)})
    size, start, _ = package.header
    assert size - start < 2000


def test_an_array_that_may_not_be_written_stays_so(packages: Any) -> None:
    table = np.arange(5)
    table.flags.writeable = False
    assert not packages(table).load().flags.writeable


def test_stand_ins_go_in_the_place_of_what_stays(packages: Any) -> None:
    stays = types.SimpleNamespace(lock=iter([]))
    arrived = packages([stays, {"again": stays}], {id(stays): "stand-in"}).load()
    assert arrived == ["stand-in", {"again": "stand-in"}]


def test_what_cannot_be_imported_is_sent_by_value(packages: Any) -> None:
    module, factor = Tied(), 3

    def step(self: Tied) -> int:
        return 2 * factor

    module.step = types.MethodType(step, module)  # type: ignore[method-assign]
    arrived, double = packages((module, lambda x: 2 * x)).load()
    assert arrived.step() == 6
    assert arrived.step.__self__ is arrived
    assert double(4) == 8


def test_what_cannot_be_sent_is_named_though_everything_refers_to_everything() -> None:
    module = Tied()
    holder = types.SimpleNamespace(module=module)
    module.parts = [holder, {"lock": threading.Lock()}]  # type: ignore[assignment]
    found = find_unpicklable({"holder": holder, "module": module}, {})
    assert found is not None
    assert found[0] == "module.parts[1]['lock']"


def test_nothing_is_named_where_all_can_be_sent() -> None:
    assert find_unpicklable({"module": Tied()}, {}) is None


def test_code_that_is_sent_by_value_keeps_its_file_for_tracebacks(packages: Any) -> None:
    def step() -> None:
        raise RuntimeError

    sent = packages(step).load()
    assert sent.__code__ is not step.__code__
    assert sent.__code__.co_filename == __file__
