"""What cannot be cut into layer groups is refused, with what was seen and what to write."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from tests.people import Classifier

LORA = {"peft_type": "LORA", "r": 2}


class Stack(nn.Module):
    """Blocks and a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(4, 2)


def chain(depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)], nn.Linear(4, 2))


@pytest.mark.parametrize("slices", [0, -1])
def test_fewer_than_one_group_is_refused(slices: int) -> None:
    with pytest.raises(LayersError, match="slices"):
        find_layers(chain(), slices)


@pytest.mark.parametrize("head", [None, "3"])
def test_an_empty_list_of_layers_is_refused(head: str | None) -> None:
    with pytest.raises(LayersError, match="0 blocks"):
        find_layers(chain(), 2, layers=[], head=head)


def test_too_few_blocks_are_counted_and_named() -> None:
    message = r"has 3 blocks \(0, 1, 2\) for 4 slices\. Expected .*use slices=3 or fewer; or groups=3, .* or name finer layers"
    with pytest.raises(LayersError, match=message):
        find_layers(chain(3), 4)


@pytest.mark.parametrize(
    ("path", "close"),
    [
        ("network.block", "'network.blocks'"),
        ("network.blocks.4", r"'network\.blocks\.\d'"),
        ("netwrk.blocks", "'network.blocks'"),
    ],
)
def test_an_unknown_path_is_answered_with_close_ones(path: str, close: str) -> None:
    with pytest.raises(
        LayersError, match=rf"has no module '{path}'\. Did you mean .*{close}.* layers are: network\.blocks"
    ):
        find_layers(Classifier(4), 2, layers=path)


def test_a_path_like_nothing_is_answered_with_the_lists_there_are() -> None:
    with pytest.raises(LayersError, match=r"has no module 'qqq'\. Its lists of layers are: network\.blocks\."):
        find_layers(Classifier(4), 2, layers=["qqq"])


def test_an_averaged_copy_beside_the_network_is_refused_as_ambiguous() -> None:
    module = Classifier(4)
    module.ema = copy.deepcopy(module.network)
    with pytest.raises(
        LayersError, match=r"2 lists of 4 layers: network\.blocks, ema\.blocks\. .* layers='ema\.blocks'"
    ):
        find_layers(module, 2)


def test_naming_the_layers_ends_the_ambiguity() -> None:
    module = Classifier(4)
    module.ema = copy.deepcopy(module.network)
    layers = find_layers(module, 2, layers="network.blocks", head="network.head")
    assert (layers.network, layers.groups[0].modules) == ("network", ("network.blocks.2", "network.blocks.3"))


def test_a_teacher_beside_a_student_is_refused_as_ambiguous() -> None:
    module = nn.ModuleDict({"student": timm.create_model("test_vit"), "teacher": timm.create_model("test_resnet")})
    with pytest.raises(LayersError, match="holds 2 networks: student, teacher"):
        find_layers(module, 2)


def test_a_head_without_parameters_is_refused() -> None:
    net = Stack(nn.Linear(4, 4), nn.Linear(4, 4))
    net.softmax = nn.Softmax(-1)
    with pytest.raises(LayersError, match=r"The head \(softmax\) has no parameters"):
        find_layers(net, 2, head="softmax")


@pytest.mark.parametrize(
    ("layers", "head", "message"),
    [
        (["blocks.0", "blocks.0.1"], "head", r"The block blocks\.0\.1 lies in the block blocks\.0"),
        (["blocks.0.1", "blocks.0"], "head", r"The block blocks\.0\.1 lies in the block blocks\.0"),
        (["blocks.0", "blocks.1"], "blocks.1.0", r"The block blocks\.1 and the head blocks\.1\.0 overlap"),
        (["blocks.0", "blocks.1"], "blocks", r"The block blocks\.0 and the head blocks overlap"),
        (["blocks.0", "blocks.1"], ["head", "blocks.1"], r"The block blocks\.1 and the head blocks\.1 overlap"),
        ([["blocks.0"], ["blocks.0"]], "head", "A block is named twice"),
    ],
)
def test_blocks_and_head_that_overlap_are_refused(layers: Any, head: Any, message: str) -> None:
    net = Stack(*[nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)])
    with pytest.raises(LayersError, match=message):
        find_layers(net, 2, layers=layers, head=head)


def test_one_layer_under_two_paths_cannot_be_two_blocks() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(LayersError, match=r"blocks\.0.*blocks\.1|blocks\.1.*blocks\.0"):
        find_layers(Stack(shared, shared), 2, layers=["blocks.0", "blocks.1"], head="head")


def test_a_layer_that_two_groups_share_cannot_carry_the_adapters_of_both() -> None:
    # one stand-in would take the other's place at every path, and a stage trained before would no longer act
    shared = nn.Linear(4, 4)
    net = Stack(*[nn.Sequential(nn.Linear(4, 4), shared) for _ in range(2)])
    with pytest.raises(LayersError, match=r"blocks\.\d\.1"):
        StageBuilder(net, find_layers(net, 2), resolve_adapter(LORA))


def test_blocks_that_are_registered_under_two_paths_are_found_or_refused_and_never_crash() -> None:
    # monai's DynUNet: its parts are attributes of its own, and nested in each other as well
    class Skip(nn.Module):
        def __init__(self, down: nn.Module, rest: nn.Module) -> None:
            super().__init__()
            self.down, self.rest = down, rest

    net = nn.Module()
    blocks = [
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))) for _ in range(3)
    ]
    net.skip_layers = Skip(blocks[0], Skip(blocks[1], blocks[2]))
    net.downsamples = nn.ModuleList(blocks[1:])
    net.output_block = nn.Conv2d(4, 2, 1)
    with pytest.raises(LayersError):
        find_layers(net, 2)


def test_a_layer_shared_inside_one_group_is_fine() -> None:
    shared = nn.Linear(4, 4)
    net = Stack(nn.Linear(4, 4), nn.Sequential(shared, shared))
    builder = StageBuilder(net, find_layers(net, 2), resolve_adapter(LORA))
    assert builder.targets == {1: ("blocks.1.0",), 2: ("blocks.0",)}


def test_a_model_of_one_layer_used_many_times_is_refused() -> None:
    config = transformers.AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=16, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(
        LayersError, match=r"No list of layers was found in AlbertForSequenceClassification\. Seen: albert"
    ):
        find_layers(transformers.AlbertForSequenceClassification(config), 2)


def test_a_module_without_lists_says_what_was_seen_and_what_to_write() -> None:
    net = nn.Module()
    net.conv1, net.conv2, net.fc = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Linear(4, 1)
    with pytest.raises(
        LayersError,
        match=r"Seen: conv1 \(Conv2d\), conv2 \(Conv2d\), fc \(Linear\)\. .*layers=\['conv1', 'conv2'\], head='fc'",
    ):
        find_layers(net, 2)


def test_a_module_without_anything_is_refused() -> None:
    with pytest.raises(LayersError, match="Seen: no submodules"):
        find_layers(nn.Identity(), 2)


def test_a_headless_backbone_names_its_parts() -> None:
    with pytest.raises(LayersError, match=r"No head was found in .*parts with parameters are .*blocks.*Name it: head="):
        find_layers(timm.create_model("test_vit", num_classes=0), 2)


def test_nothing_of_the_module_changes_by_a_refusal() -> None:
    module = Classifier(4)
    before = [(name, id(part), part.training) for name, part in module.named_modules()]
    state = copy.deepcopy(module.state_dict())
    with pytest.raises(LayersError):
        find_layers(module, 9)
    assert [(name, id(part), part.training) for name, part in module.named_modules()] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_lazy_layers_without_a_shape_are_refused() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(LayersError, match=r"0\.weight, 0\.bias have no shape yet.*Call the network with one batch"):
        find_layers(net, slices=2)
    net(torch.ones(1, 3))
    assert find_layers(net, slices=2).head == ("4",)
