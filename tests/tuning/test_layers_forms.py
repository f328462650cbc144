"""Networks without one list of blocks: layers as attributes, U-Nets, recurrent networks, encoders with a decoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torchvision
from torch import Tensor, nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning import find_layers


class Parts(nn.Module):
    """A network with these attributes, in this order."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Lit(pl.LightningModule):
    """A LightningModule with these attributes."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def tutorial_cnn() -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, 6, 5),
        "pool": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5),
        "fc1": nn.Linear(16 * 25, 120),
        "fc2": nn.Linear(120, 84),
        "fc3": nn.Linear(84, 10),
    }


def double(taken: int, given: int) -> Parts:
    block = nn.Sequential(nn.Conv2d(taken, given, 3), nn.BatchNorm2d(given), nn.ReLU(), nn.Conv2d(given, given, 3))
    return Parts(double_conv=block)


def up(taken: int, given: int) -> Parts:
    return Parts(up=nn.ConvTranspose2d(taken, taken // 2, 2), conv=double(taken, given))


def u_net() -> Parts:
    return Parts(
        inc=double(3, 8),
        down1=double(8, 16),
        down2=double(16, 32),
        up1=up(32, 16),
        up2=up(16, 8),
        outc=nn.Conv2d(8, 2, 1),
    )


def encoder() -> nn.Module:
    resnet = torchvision.models.resnet18()
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return Parts(**{name: getattr(resnet, name) for name in names})


def decoder(blocks: int = 3) -> Parts:
    # each takes what comes from below and what the encoder gave
    return Parts(blocks=nn.ModuleList([nn.Sequential(nn.Conv2d(768, 32, 1)), *(double(96, 32) for _ in range(blocks))]))


def segmentation() -> Parts:
    return Parts(encoder=encoder(), decoder=decoder(), segmentation_head=nn.Sequential(nn.Conv2d(32, 3, 3)))


def lstm(**arguments: Any) -> Parts:
    width = 64 if arguments.get("bidirectional") else 32
    return Parts(
        embedding=nn.Embedding(90, 16),
        lstm=nn.LSTM(16, 32, **arguments),
        hidden=nn.Linear(width, 8),
        fc=nn.Linear(8, 5),
    )


FOUND: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[str, ...]]] = {
    "a tutorial's CNN": (lambda: Lit(**tutorial_cnn()), ["conv1", "conv2", "fc1", "fc2"], ("fc3",)),
    "the same in a module": (
        lambda: Lit(net=Parts(**tutorial_cnn()), loss=nn.CrossEntropyLoss()),
        ["net.conv1", "net.conv2", "net.fc1", "net.fc2"],
        ("net.fc3",),
    ),
    "with normalisations": (
        lambda: Lit(l1=nn.Linear(8, 16), bn1=nn.BatchNorm1d(16), l2=nn.Linear(16, 16), bn2=nn.BatchNorm1d(16), l3=nn.Linear(16, 3)),
        ["l1", "bn1", "l2", "bn2"],
        ("l3",),
    ),
    "an LSTM": (lambda: Lit(net=lstm()), ["net.lstm", "net.hidden"], ("net.fc",)),
    "an LSTM both ways": (lambda: Lit(net=lstm(bidirectional=True)), ["net.lstm", "net.hidden"], ("net.fc",)),
    "stacked GRUs": (
        lambda: Lit(embed=nn.Embedding(9, 8), first=nn.GRU(8, 16), second=nn.GRU(16, 16), out=nn.Linear(16, 5)),
        ["first", "second"],
        ("out",),
    ),
    "a U-Net": (lambda: Lit(model=u_net()), [f"model.{name}" for name in ("inc", "down1", "down2", "up1", "up2")], ("model.outc",)),
    "an encoder and a small decoder": (
        lambda: Lit(model=segmentation()),
        [f"model.encoder.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)],
        ("model.decoder", "model.segmentation_head"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_has_no_list_of_blocks_is_found(name: str) -> None:
    make, blocks, head = FOUND[name]
    layers = find_layers(make(), 2)
    assert [path for group in reversed(layers.groups) for path in group.modules] == blocks
    assert layers.head == head


def test_one_recurrent_layer_is_one_block() -> None:
    net = Lit(embedding=nn.Embedding(90, 16), lstm=nn.LSTM(16, 32), fc=nn.Linear(32, 5))
    assert find_layers(net, 1).groups[0].modules == ("lstm",)
    with pytest.raises(LayersError, match=r"has 1 blocks \(lstm\) for 2 slices"):
        find_layers(net, 2)


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "branches beside each other": lambda: Lit(left=nn.Linear(8, 4), right=nn.Linear(8, 4), fc=nn.Linear(8, 2)),
    "networks beside each other": lambda: Lit(
        first=Parts(**tutorial_cnn()), second=Parts(**tutorial_cnn()), third=double(10, 3), fourth=double(3, 1)
    ),
    "an encoder, and a decoder as large": lambda: Lit(
        model=Parts(encoder=encoder(), decoder=encoder(), head=nn.Conv2d(512, 3, 1))
    ),
    "a part of a network that is a chain": lambda: Lit(
        trunk=Parts(**tutorial_cnn()), other=nn.Bilinear(10, 10, 3), scale=nn.Linear(7, 1)
    ),
    "an autoencoder": lambda: Lit(
        encoder=nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 3)),
        decoder=nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 784)),
    ),
    "blocks without a head": lambda: Lit(model=Parts(flows=nn.ModuleList([double(8, 8) for _ in range(3)]))),
    "more layers than a line holds": lambda: Lit(
        **{f"from_{name}": nn.Linear(8, 4 + at % 2) for at, name in enumerate("abcdefghijklmnop")}
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_not_guessed_and_what_is_proposed_can_be_pasted(name: str) -> None:
    module = REFUSED[name]()
    with pytest.raises(LayersError) as raised:
        find_layers(module, 2)
    proposed = re.search(r"layers=(?:\[.*?\]|'.*?'), head=(?:\[.*?\]|'.*?')", str(raised.value))
    assert proposed is not None, raised.value
    assert find_layers(module, 2, **eval(f"dict({proposed[0]})")).groups
