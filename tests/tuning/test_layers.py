"""Groups, and layers and heads that the user names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning import find_layers
from tests.people import Classifier


@given(st.integers(2, 30), st.data())
def test_groups_are_consecutive_blocks_and_the_lower_ones_are_larger_by_one_at_most(depth: int, data: Any) -> None:
    slices = data.draw(st.integers(1, depth))
    network = nn.Sequential(*[nn.Linear(2, 2) for _ in range(depth + 1)])
    groups = find_layers(network, slices).groups
    assert [group.index for group in groups] == list(range(1, slices + 1))
    assert [path for group in reversed(groups) for path in group.modules] == [str(block) for block in range(depth)]
    sizes = [len(group.modules) for group in groups]
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[0] <= 1


def test_blocks_are_cut_by_whole_path_parts() -> None:
    groups = find_layers(Classifier(12), 12).groups
    assert [group.modules for group in groups] == [(f"network.blocks.{block}",) for block in reversed(range(12))]


def test_a_block_is_no_part_of_another_whose_number_begins_alike() -> None:
    layers = find_layers(Classifier(12), 2, layers=[["network.blocks.10"], ["network.blocks.1"]])
    assert [group.modules for group in layers.groups] == [("network.blocks.1",), ("network.blocks.10",)]


def test_the_same_module_gives_the_same_layers() -> None:
    assert find_layers(Classifier(12), 5) == find_layers(Classifier(12), 5)


def test_layers_and_head_can_be_named() -> None:
    module = Classifier(4)
    by_list = find_layers(module, 2, layers="network.blocks", head="network.head")
    by_path = find_layers(module, 2, layers=[f"network.blocks.{i}" for i in range(4)], head=["network.head"])
    by_group = find_layers(module, 2, layers=[["network.blocks.0"], ["network.blocks.1", "network.blocks.2"]])
    assert by_list.groups == by_path.groups == find_layers(module, 2).groups
    assert (by_list.source, by_list.network) == ("named by the user", "network")
    assert [group.modules for group in by_group.groups] == [
        ("network.blocks.1", "network.blocks.2"),
        ("network.blocks.0",),
    ]


def test_the_last_layer_of_a_sequential_that_is_named_is_the_head() -> None:
    module = nn.ModuleDict({"net": nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)]), "critic": nn.Linear(2, 1)})
    layers = find_layers(module, 3, layers="net")
    assert (layers.network, layers.head) == ("net", ("net.3",))
    assert find_layers(module, 3, layers="net", head="net.3") == layers
    assert find_layers(module, 4, layers="net", head="critic").groups[0].modules == ("net.3",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slices": 5}, r"has 4 blocks \(network\.blocks\.0, .*\) for 5 slices.*use slices=4 or fewer"),
        ({"slices": 0}, r"Expected `slices` to be a positive integer, but got 0"),
        ({"slices": 2.0}, r"Expected `slices` to be a positive integer, but got 2\.0"),
        ({"layers": "network.block"}, r"no module 'network\.block'\. Did you mean 'network\.blocks'.*network\.blocks"),
        ({"layers": ["network.blocks.0", "network.blocks.4"]}, r"no module 'network\.blocks\.4'\. Did you mean"),
        ({"layers": "network.head"}, r"'network\.head' is a Linear without blocks"),
        ({"layers": "network"}, r"'network' is a Network without blocks"),
        ({"layers": []}, r"`layers` names 0 blocks"),
        ({"layers": [["network.blocks.0"], []]}, r"layers\[1\] \(\[\]\) has no parameters"),
        ({"layers": ["network.blocks.0", ["network.blocks.1"]]}, r"`layers` mixes paths \('network\.blocks\.0'\)"),
        ({"layers": [["network.blocks.0"]]}, r"names 1 groups for 2 slices"),
        ({"layers": ["network.blocks.0", "network.blocks.0.linear"]}, r"blocks\.0\.linear lies in the block"),
        ({"layers": ["network.blocks.0", "network.blocks.0"]}, r"A block is named twice"),
        ({"layers": ["network.blocks.0", "accuracy"]}, r"The blocks accuracy have no parameters"),
        ({"head": "head"}, r"no module 'head'\. Did you mean 'network\.head'"),
        ({"head": ""}, r"Expected `head` to be the path of a module, or several, but got ''"),
        ({"head": []}, r"Expected `head` to be the path of a module, or several, but got \[\]"),
        ({"head": "network.blocks.3"}, r"The block network\.blocks\.3 and the head network\.blocks\.3 overlap"),
        ({"head": "network"}, r"The block network\.blocks\.\d and the head network overlap"),
        ({"head": "accuracy"}, r"The head \(accuracy\) has no parameters"),
        ({"head": ["network.blocks", "network.blocks.3"]}, r"The head network\.blocks\.3 lies in the head"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_seen(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LayersError, match=message):
        find_layers(Classifier(4), **{"slices": 2, **arguments})


def test_a_block_that_is_registered_twice_is_refused() -> None:
    block = nn.Linear(2, 2)
    module = nn.ModuleDict({"a": block, "b": block, "head": nn.Linear(2, 2)})
    with pytest.raises(LayersError, match="A block is named twice"):
        find_layers(module, 2, layers=["a", "b"])


def test_a_head_that_shares_its_weight_with_a_block_is_refused() -> None:
    module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "head": nn.Linear(2, 2)})
    module["head"].weight = module["blocks"][0].weight
    with pytest.raises(LayersError, match=r"head\.weight in the head is the same parameter as blocks\.0\.weight"):
        find_layers(module, 2)
