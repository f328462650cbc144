"""What no shard adapts is computed once, and every shard's answer stays what it is, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.serving.shards import IMAGES, MODELS, TOKENS, Shards, make_bert, make_vit, tensor_of
from tests.tiers import nightly_except


def count_calls(shards: Shards, paths: list[str]) -> list[int]:
    """Count how often blocks compute, by the calls of something in them."""
    counts = [0] * len(paths)

    def counting(place: int) -> Any:
        def hook(*_: Any) -> None:
            counts[place] += 1

        return hook

    for place, path in enumerate(paths):
        shards.root.get_submodule(path).register_forward_pre_hook(counting(place))
    return counts


@pytest.mark.parametrize("stages", nightly_except([[1, 1], [4, 1, 2], [2, 2, 2], [4, 4], [3]], [4, 1, 2]), ids=str)
@pytest.mark.parametrize("model", nightly_except(MODELS, *(MODELS.keys() - {"densenet"})))
def test_every_shard_answers_as_it_does_alone(model: str, stages: list[int]) -> None:
    torch.manual_seed(0)
    make, args, kwargs = MODELS[model]
    shards = Shards(make(), stages)
    answers = shards.ask("sequential", *args, **kwargs)
    alone = shards.ask_alone(*args, **kwargs)
    assert all(torch.equal(tensor_of(a), tensor_of(b)) for a, b in zip(answers, alone, strict=True))
    assert len({tuple(tensor_of(a).flatten().tolist()) for a in alone}) == len(stages)


@pytest.mark.parametrize(
    ("stages", "expected"),
    # blocks from the lowest up; the lowest belongs to group 4
    [([1, 1, 1], [1, 1, 1, 3]), ([4, 4, 4], [3, 3, 3, 3]), ([2, 1, 4], [2, 2, 3, 3]), ([2, 3], [1, 2, 2, 2])],
)
def test_a_block_is_computed_once_for_all_that_leave_it_alone(stages: list[int], expected: list[int]) -> None:
    shards = Shards(make_vit(), stages)
    shards.ask("sequential", IMAGES)
    counts = count_calls(shards, [f"blocks.{block}.mlp" for block in range(4)])
    shards.ask("sequential", IMAGES)
    assert counts == expected


def test_a_whole_layer_adapter_shares_the_trunk_too() -> None:
    shards = Shards(make_vit(), [1, 3], adapter=None)
    shards.ask("sequential", IMAGES)
    counts = count_calls(shards, ["blocks.0.mlp"])
    answers = shards.ask("sequential", IMAGES)
    assert counts == [1]
    assert all(torch.equal(a, b) for a, b in zip(answers, shards.ask_alone(IMAGES), strict=True))


class InPlace(nn.Module):
    """Adds to what its blocks return, in place, and reads the lowest one's answer at the end again."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for number, block in enumerate(self.blocks):
            x = block(x)
            first = x if number == 0 else first
            x += 1
        return self.head(x + first)


class TwoBranches(nn.Module):
    """Has its lower blocks read what its upper ones have said."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    """Does what `how` says, besides or instead of returning something."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.how = how

    def forward(self, x: Tensor, seen: list[Tensor]) -> Any:
        if self.how == "writes into what it is given":
            return x.add_(torch.tanh(self.linear(x)))
        answer = x + torch.tanh(self.linear(x))
        if self.how == "adds to a list":
            seen.append(answer)
        return Kept(answer) if self.how == "returns an object" else answer


class Kept:
    """No tensor, tuple or dict."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Doing(nn.Module):
    """A network whose blocks do more than return something."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList([Block(how) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, seen, dense = x * 1, [], x * 0
        for block in self.blocks:
            dense = dense + x
            answer = block(x, seen)
            if self.how == "returns an object":
                x = answer.x.mul_(1.5)
            elif self.how != "writes into what it is given":
                x = answer
        return self.head(x + dense + sum(seen))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("how", ["writes into what it is given", "adds to a list", "returns an object"])
def test_blocks_that_do_more_than_return_something_are_computed_for_every_shard(how: str, inference: bool) -> None:
    shards, x = Shards(Doing(how), [1, 3, 2]), torch.randn(5, 6)
    with torch.inference_mode(inference):
        for _ in range(2):
            answers = shards.ask("sequential", x.clone())
            assert all(torch.equal(a, b) for a, b in zip(answers, shards.ask_alone(x.clone()), strict=True))


@torch.no_grad()
def test_attentions_that_transformers_collects_are_every_shards_own() -> None:
    network = make_bert()
    network.set_attn_implementation("eager")
    shards, expected = Shards(network, [1, 2]), {"input_ids": TOKENS, "output_attentions": True}
    for _ in range(2):
        for answer, alone in zip(shards.ask("sequential", **expected), shards.ask_alone(**expected), strict=True):
            assert len(answer.attentions) == 4
            assert all(torch.equal(a, b) for a, b in zip(answer.attentions, alone.attentions, strict=True))


@pytest.mark.parametrize("kind", [InPlace, TwoBranches])
def test_networks_with_ways_of_their_own_answer_as_they_do_alone(kind: type[nn.Module]) -> None:
    shards = Shards(kind(), [1, 3, 2])
    x = torch.randn(5, 6)
    answers = shards.ask("sequential", x.clone())
    assert all(torch.equal(a, b) for a, b in zip(answers, shards.ask_alone(x.clone()), strict=True))


def test_the_network_has_its_own_forward_back_when_a_pass_fails() -> None:
    shards = Shards(make_vit(), [1, 2])
    with pytest.raises(AssertionError, match="Input"):
        shards.ask("sequential", IMAGES[..., :20])
    assert not [name for name, module in shards.root.named_modules() if "forward" in vars(module)]
    answers = shards.ask("sequential", IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(answers, shards.ask_alone(IMAGES), strict=True))
