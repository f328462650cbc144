"""Swapping modules: at every place, whole again afterwards."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.swap import ModuleSwap

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Blocks, a head, and the head once more under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(12)])
        self.head = nn.Linear(2, 2)
        self.parts = nn.ModuleDict({"answer": self.head})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(block(x)) + x
        return self.head(x)


def paths(module: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(part)) for name, part in module.named_modules(remove_duplicate=False)]


def test_a_stand_in_acts_in_the_place_of_the_original() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    stand_in = nn.Linear(2, 2)
    ModuleSwap(net, ["0"]).install({"0": stand_in})
    assert torch.equal(net(X), torch.relu(stand_in(X)))


def test_a_module_under_two_names_is_swapped_at_both() -> None:
    net, stand_in = Net(), nn.Linear(2, 2)
    ModuleSwap(net, ["head"]).install({"head": stand_in})
    assert net.head is stand_in
    assert net.parts["answer"] is stand_in


def test_the_second_name_leads_to_the_same_module() -> None:
    net, stand_in = Net(), nn.Linear(2, 2)
    ModuleSwap(net, ["parts.answer"]).install({"parts.answer": stand_in})
    assert net.head is stand_in


def test_a_name_is_matched_whole() -> None:
    net = Net()
    before = [id(block) for block in net.blocks]
    ModuleSwap(net, ["blocks.1"]).install({"blocks.1": nn.Identity()})
    changed = [place for place, block in enumerate(net.blocks) if id(block) != before[place]]
    assert changed == [1]


@given(st.lists(st.sets(st.integers(0, 11)), max_size=5))
def test_after_any_installs_only_the_last_one_acts_and_restoring_gives_all_back(rounds: list[set[int]]) -> None:
    net = Net()
    before, answer = paths(net), net(X)
    swap = ModuleSwap(net, [f"blocks.{place}" for place in range(12)])
    for chosen in rounds:
        swap.install({f"blocks.{place}": nn.Identity() for place in chosen})
        swapped = {place for place, block in enumerate(net.blocks) if isinstance(block, nn.Identity)}
        assert swapped == chosen
    swap.restore()
    assert paths(net) == before
    assert torch.equal(net(X), answer)


def test_restoring_gives_every_tensor_back_to_the_bit() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    swap = ModuleSwap(net, ["head", "blocks.3"])
    swap.install({"head": nn.Linear(2, 5), "blocks.3": nn.Identity()})
    swap.restore()
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_order_of_the_children_is_kept() -> None:
    # parameters are given to optimizers in this order, and an optimizer's state is kept by it
    net = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2)))
    swap = ModuleSwap(net, ["a"])
    swap.install({"a": nn.Linear(2, 2)})
    assert [name for name, _ in net.named_children()] == ["a", "b", "c"]
    swap.restore()
    assert [name for name, _ in net.named_children()] == ["a", "b", "c"]


def test_restoring_twice_or_without_installing_does_nothing() -> None:
    net = Net()
    before = paths(net)
    swap = ModuleSwap(net, ["head"])
    swap.restore()
    swap.restore()
    assert paths(net) == before


def test_the_originals_are_kept_by_name() -> None:
    net = Net()
    head = net.head
    swap = ModuleSwap(net, ["head"])
    swap.install({"head": nn.Identity()})
    assert swap.originals == {"head": head}


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "The root module cannot be swapped"), ("tail", "no submodule 'tail'"), ("blocks.12", "no submodule")],
)
def test_what_cannot_be_swapped_is_refused(name: str, message: str) -> None:
    with pytest.raises(LayersError, match=message):
        ModuleSwap(Net(), [name])
