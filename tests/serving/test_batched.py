"""Several shards in one pass: each shard's answer but for rounding, or no such pass at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_s3t.serving.batched import ShardBatchedLayer, allclose_nested
from lightning_s3t.serving.passes import ShardPasses
from tests.serving.shards import IMAGES, LORA, MODELS, TOKENS, Shards, make_bert, make_vit, tensor_of
from tests.tiers import nightly_except

ADAPTERS: dict[str, Any] = {
    "lora": {**LORA, "lora_dropout": 0.1, "use_rslora": True},
    "lora with bias": {**LORA, "lora_bias": True},
    "dora": {**LORA, "use_dora": True},
    "ia3": {"peft_type": "IA3", "target_modules": ["qkv"]},
    "whole layers": None,
}


def watch_rows(module: nn.Module) -> list[int]:
    """Note how many rows a module is called with."""
    rows: list[int] = []
    module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


class Asked:
    """Asks shards together, twice: the first call of a form is a trial."""

    def __init__(self, shards: Shards, *args: Any, **kwargs: Any) -> None:
        passes = ShardPasses(shards.builder, shards.served, "batched")
        order = list(shards.served.survivors)
        self.calls = 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return shards.root.forward(*args, **kwargs)

        with torch.no_grad():
            self.first = passes.run(forward, args, kwargs, order, {})
            self.calls = 0
            self.again = passes.run(forward, args, kwargs, order, {})


@pytest.mark.parametrize("stages", nightly_except([[4, 1, 2], [2, 2, 2], [4, 4]], [4, 1, 2]), ids=str)
@pytest.mark.parametrize("model", nightly_except(MODELS, *(MODELS.keys() - {"densenet"})))
def test_together_is_in_turn_but_for_rounding(model: str, stages: list[int]) -> None:
    torch.manual_seed(0)
    make, args, kwargs = MODELS[model]
    shards = Shards(make(), stages)
    asked = Asked(shards, *args, **kwargs)
    assert asked.calls == (1 if max(stages) == 4 else 2)  # of which one ends where the trunk does
    assert allclose_nested(asked.first, shards.ask_alone(*args, **kwargs))
    assert all(torch.equal(tensor_of(a), tensor_of(b)) for a, b in zip(asked.first, asked.again, strict=True))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_adapter_can_be_asked_together(kind: str) -> None:
    torch.manual_seed(0)
    shards = Shards(make_vit(), [4, 1, 3], ADAPTERS[kind])
    asked = Asked(shards, IMAGES)
    assert asked.calls == 1
    assert allclose_nested(asked.first, shards.ask_alone(IMAGES))


@pytest.mark.parametrize("kind", ["autocast", "weights"])
def test_half_precision_rounds_more_and_is_asked_together_all_the_same(kind: str) -> None:
    torch.manual_seed(0)
    shards = Shards(make_vit(), [4, 2])
    images = IMAGES
    if kind == "weights":
        nn.ModuleList([shards.root, shards.served]).bfloat16()
        images = images.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        asked = Asked(shards, images)
    assert asked.calls == 1


def test_rows_are_those_of_all_shards_above_the_trunk_and_the_plain_ones_below() -> None:
    shards = Shards(make_vit(), [2, 1])
    below, above = watch_rows(shards.root.blocks[1].mlp), watch_rows(shards.root.blocks[3].mlp)  # type: ignore[index, union-attr]
    Asked(shards, IMAGES)
    # a trial is a pass for each shard and one together; then there is one together
    assert below == [3, 3, 3, 3]
    assert above == [3, 3, 6, 6]


def test_lora_reads_a_pretrained_weight_once_for_all_shards() -> None:
    shards = Shards(make_vit(), [4, 4, 1])
    calls = watch_rows(shards.root.blocks[3].attn.qkv)  # type: ignore[index, union-attr]
    Asked(shards, IMAGES)
    assert calls.count(9) == 2  # in the trial, and in the pass


class RowsSecond(nn.Module):
    """Has its rows in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(6, 2, 8) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0))


class RowsMix(nn.Module):
    """Answers by comparing its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x - x.mean((0, 1), keepdim=True)).sum(1)


class NoRows(nn.Module):
    """Answers for all its rows at once."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean((0, 1)).view(1, 3)


class Scaled(nn.Module):
    """Answers with something that is as long as a batch may be."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) * scale


@pytest.mark.parametrize("rows", [(2, 1), (0, 3), (4, 3, 6)])
def test_every_number_of_rows_is_tried_by_itself(rows: tuple[int, ...]) -> None:
    shards, scale = Shards(Scaled(), [3, 4, 2]), torch.tensor([1.0, 2.0, 3.0])
    for count in rows:
        x = torch.randn(count, 6)
        for _ in range(2):
            assert allclose_nested(shards.ask("batched", x, scale), shards.ask_alone(x, scale))


class Answers:
    """No tensor, tuple or dict."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Objects(RowsMix):
    """Answers with an object."""

    def forward(self, x: Tensor) -> Any:
        return Answers(super().forward(x))


def test_an_answer_that_cannot_be_cut_is_asked_for_in_turn() -> None:
    shards = Shards(Objects(), [3, 4])
    for _ in range(2):
        answers = shards.ask("batched", torch.randn(4, 6, 6))
        assert [tuple(answer.logits.shape) for answer in answers] == [(4, 3), (4, 3)]


def test_a_call_that_fails_changes_nothing_for_the_next_ones() -> None:
    shards = Shards(make_vit(), [3, 4])
    before = shards.ask("batched", IMAGES)
    with pytest.raises(AssertionError):
        shards.ask("batched", IMAGES[..., :20])
    assert all(torch.equal(a, b) for a, b in zip(before, shards.ask("batched", IMAGES), strict=True))


def test_nothing_that_a_call_says_is_kept() -> None:
    shards = Shards(make_bert(), [3, 4])
    shards.ask("batched", input_ids=TOKENS, return_dict=True)
    passes = shards._passes["batched"]
    form = passes.form_of((), {"input_ids": TOKENS, "prompt": "Jane Doe"}, [0, 1])
    assert form == passes.form_of((), {"input_ids": TOKENS, "prompt": "John Smith"}, [0, 1])


@pytest.mark.parametrize("kind", [RowsSecond, RowsMix, NoRows])
def test_a_network_whose_rows_cannot_be_told_apart_is_asked_in_turn(kind: type[nn.Module]) -> None:
    shards = Shards(kind(), [3, 4])
    x = torch.randn(4, 6, 6)
    asked = Asked(shards, x)
    assert asked.calls == 2
    for answers in (asked.first, asked.again):
        assert all(torch.equal(a, b) for a, b in zip(answers, shards.ask_alone(x), strict=True))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([1.0]), torch.tensor([float("nan")]), False),
        (torch.empty(0), torch.empty(0), True),
        (torch.tensor([1e6, 1.0]), torch.tensor([1e6, 1.1]), True),
        (torch.tensor([1.0]), torch.tensor([1.01]), False),
        (torch.tensor([1.0]).bfloat16(), torch.tensor([1.01]).bfloat16(), True),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), False),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, False),
        (torch.tensor([1e-5]), torch.tensor([2e-5]), False),
        (object(), object(), False),
    ],
)
def test_answers_are_alike_up_to_the_rounding_of_their_largest_value(one: Any, other: Any, expected: bool) -> None:
    assert allclose_nested(one, other) is expected


class Scale(nn.Module):
    """A layer that is false: it has a length, as a queue has, and is empty."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __len__(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_shards_layer_that_is_false_answers_for_its_shard() -> None:
    together = ShardBatchedLayer(Scale(1.0), [Scale(2.0), None])
    assert together(torch.tensor([[1.0], [1.0]])).tolist() == [[2.0], [1.0]]
