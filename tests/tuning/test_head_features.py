"""The features of a closed-form head: pooled outputs of layers, and their projection."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.tuning import find_layers
from lightning_s3t.tuning.floor import Floor
from lightning_s3t.tuning.head_features import HeadFeatures, pool_output, project
from lightning_s3t.tuning.ridge import normalise
from tests.serving.shards import TOKENS, make_bert


def features_of(network: nn.Module, floor: Floor, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """What a closed-form head gets in a call of the network."""
    layers = find_layers(network, slices=4)
    part = floor.part(network, layers)
    features, found = HeadFeatures(network, layers.network, part), list[Tensor]()
    head = network.get_submodule(part.layer)
    handle = head.register_forward_pre_hook(lambda _, args: found.append(features.of(args[0])))
    features.attach()
    with torch.no_grad():
        network.eval()(*args, **kwargs)
    features.detach()
    handle.remove()
    return found[0]


def test_padding_does_not_change_the_features_of_a_text() -> None:
    bert, floor = make_bert(), Floor(layers=4, width=32)
    short = TOKENS[:1, :4]
    padded = torch.cat([short, torch.zeros(1, 3, dtype=torch.long)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    alone = features_of(bert, floor, short, attention_mask=torch.ones_like(short))
    torch.testing.assert_close(features_of(bert, floor, padded, attention_mask=mask), alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features_of(bert, floor, padded), alone, rtol=1e-2)


def test_a_mask_given_by_position_counts_too() -> None:
    bert, floor = make_bert(), Floor(layers=1, width=8)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    by_name = features_of(bert, floor, TOKENS[:1], attention_mask=mask)
    assert features_of(bert, floor, TOKENS[:1], mask).equal(by_name)


@pytest.mark.parametrize(
    ("name", "options", "dims"),
    [
        ("resnet18", {}, 4),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2}, 3),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1, 1, 1)},
            4,
        ),
    ],
)
def test_one_number_a_channel_is_pooled_from_every_kind_of_layer(name: str, options: dict[str, int], dims: int) -> None:
    network = timm.create_model(name, num_classes=5, **options).eval()
    layers = find_layers(network, slices=4)
    path, outputs = layers.groups[0].modules[-1], list[Tensor]()
    network.get_submodule(path).register_forward_hook(lambda _, args, output: outputs.append(output))
    images = torch.randn(2, 3, 32, 32)
    found = features_of(network, Floor(layers=1, width=64), images)
    (output,) = outputs
    assert output.dim() == dims
    pooled = output.mean((2, 3)) if "resnet" in name else output.flatten(1, -2).mean(1)
    inputs = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found, project([inputs, pooled], 64), rtol=1e-4, atol=1e-4)


def test_the_projection_keeps_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(20, 50, generator=generator) for _ in range(3)]
    whole = torch.cat([normalise(part) for part in parts], 1)
    small = project(parts, 4096)
    cosines = torch.nn.functional.cosine_similarity(whole[:1], whole)
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(small[:1], small), cosines, rtol=0, atol=0.08)


def test_the_projection_is_the_same_for_ever() -> None:
    """Stores keep projected features, so another projection would need a new store."""
    found = project([torch.eye(2), torch.ones(2, 1)], 6)
    assert found.tolist() == [[-3.0, 1.0, 1.0, 3.0, 1.0, -3.0], [1.0, -3.0, -3.0, -1.0, 1.0, -3.0]]


def test_the_rows_of_the_head_are_the_last_of_a_batched_pass() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    part = FloorPart(layer="2", layers=("0",), width=8, outputs=2, bits=8, target_step=1.0)
    features, x = HeadFeatures(net, "", part), torch.randn(6, 4)
    features.attach()
    net(x)
    inputs = torch.randn(2, 3)
    assert features.of(inputs).equal(project([inputs, net[0](x)[-2:]], 8))


def test_a_layer_that_the_network_did_not_call_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    part = FloorPart(layer="2", layers=("0",), width=8, outputs=2, bits=8, target_step=1.0)
    features = HeadFeatures(net, "", part)
    features.attach()
    with pytest.raises(UnsupportedError, match=r"the output of 0, which was None for 2 rows"):
        features.of(torch.randn(2, 3))


def test_one_dimensional_outputs_are_features_as_they_are() -> None:
    assert pool_output(torch.tensor([[1.0, 2.0]]).half()).tolist() == [[1.0, 2.0]]


def test_more_layers_than_groups_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConfigurationError, match=r"Floor\(layers=3\) asks for more layer groups than there are \(2\)"):
        Floor(layers=3).part(net, find_layers(net, slices=2))


@pytest.mark.parametrize("wrong", [{"layers": -1}, {"layers": True}, {"width": 0}])
def test_a_wrong_number_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="to be an integer of at least"):
        Floor(**wrong)  # type: ignore[arg-type]
