"""Layer groups and heads of hand-written modules, in LightningModules as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import torchmetrics
import torchvision
from torch import Tensor, nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning import Layers, find_layers
from tests.people import Classifier


class Lit(pl.LightningModule):
    """A LightningModule with these attributes."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class Net(nn.Module):
    """A network whose one list of blocks has a stem before it and a normalisation and a head after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class Mlp(nn.Module):
    """A network as in GANs: one Sequential in a module of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())]
        self.model = nn.Sequential(*layers, nn.Linear(4, 4), nn.Tanh())


class PerceptualLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg11()


class Delegating(pl.LightningModule):
    """Passes on whatever its network has."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("test_vit", num_classes=3)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def residuals(depth: int) -> nn.Sequential:
    return nn.Sequential(*[Residual() for _ in range(depth)])


def linears(depth: int) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(4, 4) for _ in range(depth)])


def backbone() -> nn.Module:
    return timm.create_model("test_vit", num_classes=0)


def blocks_of(layers: Layers) -> tuple[str, ...]:
    return tuple(path for group in reversed(layers.groups) for path in group.modules)


def test_blocks_run_in_the_order_found_and_the_head_last() -> None:
    module = Classifier(12).eval()
    layers = find_layers(module, 4)
    calls: list[str] = []
    for path in [*blocks_of(layers), *layers.head]:
        module.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    module.get_submodule(layers.network)(torch.zeros(2, 8))
    assert tuple(calls) == (*(f"network.blocks.{block}" for block in range(12)), "network.head")
    assert tuple(calls) == (*blocks_of(layers), *layers.head)


SEQUENTIALS: dict[str, tuple[Callable[[], nn.Sequential], tuple[str, ...], tuple[str, ...]]] = {
    "linear layers": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2), nn.Softmax(-1)),
        ("0", "2"), ("3",),
    ),
    "a normalisation goes with its layer": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Flatten(), nn.Linear(4, 2),
        ),
        ("0", "1", "3", "4"), ("7",),
    ),
    "an embedding and a last normalisation stay outside": (
        lambda: nn.Sequential(
            nn.Embedding(9, 4), *[nn.TransformerEncoderLayer(4, 2, 8) for _ in range(3)], nn.LayerNorm(4), nn.Linear(4, 2)
        ),
        ("1", "2", "3"), ("5",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENTIALS)
def test_of_a_sequential_the_last_linear_layer_is_the_head(name: str) -> None:
    make, blocks, head = SEQUENTIALS[name]
    assert (find_layers(make(), 2).head, blocks_of(find_layers(make(), 2))) == (head, blocks)
    inside = find_layers(Lit(net=make()), 2)
    assert inside.network == "net"
    assert blocks_of(inside) == tuple(f"net.{path}" for path in blocks)


@pytest.mark.parametrize(("slices", "blocks"), [(2, ("0", "1")), (4, ("0", "1.0", "1.1", "1.2"))])
def test_lists_in_a_list_are_looked_into_when_it_is_too_short(slices: int, blocks: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*linears(3)), nn.Linear(4, 2))
    layers = find_layers(net, slices)
    assert (blocks_of(layers), layers.head) == (blocks, ("2",))


FOUND: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...], tuple[str, ...]]] = {
    "a network beside a loss with a network in it": (
        lambda: Lit(net=Net(), loss=PerceptualLoss()), "net", ("net.blocks.0", "net.blocks.3"), ("net.head",)
    ),
    "a metric of several": (
        lambda: Lit(
            net=Net(), scores=torchmetrics.MetricCollection([torchmetrics.Accuracy("binary"), torchmetrics.F1Score("binary")]),
            tracker=torchmetrics.MetricTracker(torchmetrics.Accuracy("binary")), losses=nn.ModuleList([nn.MSELoss()] * 2),
        ),
        "net", ("net.blocks.0", "net.blocks.3"), ("net.head",),
    ),
    "another module after the network": (
        lambda: Lit(net=Net(), critic=nn.Linear(4, 1)), "net", ("net.blocks.0", "net.blocks.3"), ("net.head",)
    ),
    "two heads": (
        lambda: Lit(blocks=linears(3), head_a=nn.Linear(4, 2), head_b=nn.Linear(4, 3)),
        "", ("blocks.0", "blocks.2"), ("head_a", "head_b"),
    ),
    "a list of heads": (
        lambda: Lit(blocks=linears(3), heads=linears(2)), "", ("blocks.0", "blocks.2"), ("heads.0", "heads.1")
    ),
    "a head registered first": (
        lambda: Lit(head=nn.Linear(4, 2), blocks=linears(3)), "", ("blocks.0", "blocks.2"), ("head",)
    ),
    "a timm backbone and a head beside it": (
        lambda: Lit(backbone=backbone(), projection=nn.Linear(64, 5)), "", ("backbone.blocks.0", "backbone.blocks.5"), ("projection",)
    ),
    "backbone and head in a list that has no forward": (
        lambda: Lit(nets=nn.ModuleList([backbone(), nn.Linear(64, 5)])), "", ("nets.0.blocks.0", "nets.0.blocks.5"), ("nets.1",)
    ),
    "backbone and head in a Sequential": (
        lambda: Lit(net=nn.Sequential(backbone(), nn.Linear(64, 5))), "net", ("net.0.blocks.0", "net.0.blocks.5"), ("net.1",)
    ),
    "a module that passes attributes on": (Delegating, "model", ("model.blocks.0", "model.blocks.5"), ("model.head",)),
    "stages beside each other": (
        lambda: Lit(conv1=nn.Conv2d(3, 4, 3), layer1=residuals(2), layer2=residuals(3), layer10=residuals(1), fc=nn.Linear(4, 2)),
        "", ("layer1.0", "layer10.0"), ("fc",),
    ),
    "stages in a list": (
        lambda: Lit(stages=nn.ModuleList([residuals(2), residuals(2)]), fc=nn.Linear(4, 2)), "", ("stages.0.0", "stages.1.1"), ("fc",)
    ),
    "features and a classifier of several layers": (
        lambda: Lit(features=residuals(3), classifier=nn.Sequential(*linears(3))), "", ("features.0", "features.2"), ("classifier",)
    ),
    "torch's own encoder": (
        lambda: Lit(embed=nn.Embedding(9, 4), encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 3), decoder=nn.Linear(4, 9)),
        "", ("encoder.layers.0", "encoder.layers.2"), ("decoder",),
    ),
    "torch's encoder-decoder": (
        lambda: Lit(model=nn.Transformer(4, 2, 3, 3, 8), out=nn.Linear(4, 2)),
        "", ("model.encoder.layers.0", "model.decoder.layers.2"), ("out",),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", FOUND)
def test_what_people_write_is_found(name: str) -> None:
    make, network, ends, head = FOUND[name]
    layers = find_layers(make(), 2)
    blocks = blocks_of(layers)
    assert (layers.network, (blocks[0], blocks[-1]), layers.head) == (network, ends, head)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a GAN": (
        lambda: Lit(generator=Mlp(6), discriminator=Mlp(2)),
        r"Lit has 2 lists of layers: generator\.model \(6\), discriminator\.model \(2\).*Name the one to train: layers=",
    ),
    "an autoencoder": (
        lambda: Lit(encoder=nn.Sequential(*linears(4)), decoder=nn.Sequential(*linears(4))),
        r"2 lists of 3 layers: encoder, decoder\.",
    ),
    "a U-net": (lambda: Lit(downs=linears(4), ups=linears(3), head=nn.Linear(4, 2)), r"2 lists of layers: downs \(4\), ups \(3\)"),
    "twins": (lambda: Lit(net=Net(), ema=Net()), r"2 lists of 4 layers: net\.blocks, ema\.blocks"),
    "teacher and student": (lambda: Lit(student=backbone(), teacher=backbone()), r"Lit holds 2 networks: student, teacher"),
    "heads without a telling name": (
        lambda: Lit(blocks=linears(3), left=nn.Linear(4, 2), right=nn.Linear(4, 2)),
        r"2 modules of Lit could be the head: left, right.*head='left'",
    ),
    "a list and nothing after it": (lambda: Lit(blocks=linears(3)), r"No head was found in Lit after blocks\.2"),
    "a backbone without a head": (backbone, r"No head was found in VisionTransformer after the model itself"),
    "one block used several times": (lambda: Lit(blocks=nn.ModuleList([nn.Linear(4, 4)] * 4), head=nn.Linear(4, 2)), r"No list of layers"),
    "layers beside each other": (
        lambda: Lit(left=nn.Conv2d(3, 4, 3), right=nn.Conv2d(3, 4, 3), fc=nn.Linear(8, 2)),
        r"No list of layers was found in Lit\. Seen: left \(Conv2d\), right \(Conv2d\), fc \(Linear\).*layers=\['left', 'right'\], head='fc'",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", REFUSED)
def test_where_there_is_no_telling_the_error_lists_what_was_seen(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(LayersError, match=message):
        find_layers(make(), 2)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_decoder_of_torchs_transformer_comes_after_its_encoder() -> None:
    layers = find_layers(Lit(model=nn.Transformer(4, 2, 2, 1, 8), out=nn.Linear(4, 2)), 3)
    assert [group.modules for group in layers.groups] == [
        ("model.decoder.layers.0",),
        ("model.encoder.layers.1",),
        ("model.encoder.layers.0",),
    ]


def test_a_gan_can_be_trained_by_naming_one_network() -> None:
    layers = find_layers(Lit(generator=Mlp(6), discriminator=Mlp(2)), 3, layers="generator.model")
    assert (layers.network, layers.head) == ("generator.model", ("generator.model.18",))


def test_more_slices_than_blocks_do_not_make_blocks_of_their_parts() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = linears(8)

    module = Lit(layers=nn.ModuleList([Experts() for _ in range(3)]), head=nn.Linear(4, 2))
    with pytest.raises(LayersError, match=r"has 3 blocks \(layers\.0, layers\.1, layers\.2\) for 6 slices"):
        find_layers(module, 6)
