"""Each shard's pass is its own: nothing that one does shows in another, and adapters act in every one."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s3t.errors import EnsembleError
from tests.serving.shards import Shards

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Four blocks and a head, which does something to its input first."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(6, 2)
        self.change = change

    def forward(self, x: Any) -> Tensor:
        if self.change is not None:
            x = self.change(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@dataclasses.dataclass
class Batch:
    """A batch of a class of its own, as libraries of graphs have them."""

    x: Tensor


def double_tensor(x: Tensor) -> Tensor:
    return x.mul_(2)


def double_batch(batch: Batch) -> Tensor:
    batch.x = batch.x * 2
    return batch.x


@pytest.mark.parametrize("how", ["sequential", "batched"])
@pytest.mark.parametrize(
    ("change", "make"),
    [(double_tensor, torch.clone), (double_batch, lambda x: Batch(x.clone()))],
    ids=["tensor", "object"],
)
def test_what_one_pass_changes_in_place_no_other_sees(change: Any, make: Any, how: Any) -> None:
    changing, plain = Shards(Net(change), [4, 2, 3]), Shards(Net(), [4, 2, 3])
    expected = plain.ask_alone(X * 2)
    for _ in range(2):
        given = make(X)
        for found, wanted in zip(changing.ask(how, given), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        assert torch.equal(given if isinstance(given, Tensor) else given.x, X)


def test_what_cannot_be_copied_is_refused() -> None:
    shards = Shards(Net(lambda given: given[1]), [4, 2])
    with pytest.raises(EnsembleError, match="an object of lock that cannot be copied"):
        shards.ask("sequential", (threading.Lock(), X))


class Fused(nn.Module):
    """A block with a short cut that reads its layer's weight, and does not call the layer."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight, self.linear.bias) if self.fused else self.linear(x)


@pytest.mark.parametrize("stages", [[4], [4, 2]])
def test_a_block_that_computes_past_its_adapters_is_refused(stages: list[int]) -> None:
    network = Net()
    network.blocks = nn.ModuleList([Fused(fused=index == 2) for index in range(4)])
    shards = Shards(network, stages)
    for _ in range(2):
        with pytest.raises(
            EnsembleError, match=r"blocks\.2 \(Fused\) computes its output without calling its adapters"
        ):
            shards.ask("sequential", X)
    assert len(Shards(network, [1, 1]).ask("sequential", X)) == 2  # that layer group is not adapted here


def test_torchs_fused_encoder_layers_call_their_adapters() -> None:
    network = Net()
    network.blocks = nn.ModuleList(
        [nn.TransformerEncoderLayer(6, 2, dim_feedforward=8, dropout=0.0, batch_first=True) for _ in range(4)]
    )
    shards = Shards(network, [4, 1])
    first, second = shards.ask("sequential", X[None])
    assert not torch.equal(first, second)
