"""Stages: what is trained, what acts, and what is left untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from lightning_s3t.errors import AdapterError, LayersError
from lightning_s3t.tuning import StageBuilder, describe_layers, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.freezing import set_trainable
from lightning_s3t.tuning.stages import Stage
from lightning_s3t.tuning.swap import ModuleSwap
from tests.people import Classifier

LORA: Any = {"peft_type": "LORA", "r": 2}
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def make(adapter: Any = LORA, slices: int = 4) -> tuple[Classifier, StageBuilder, ModuleSwap]:
    module = Classifier(4).eval()
    builder = StageBuilder(module, find_layers(module, slices), resolve_adapter(adapter))
    return module, builder, ModuleSwap(module, builder.originals)


def train(module: nn.Module, stage: Stage) -> dict[str, torch.Tensor]:
    set_trainable(module, stage.trainable.values())
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(X).square().mean().backward()
        optimizer.step()
    return stage.snapshot()


@pytest.mark.parametrize("adapter", [LORA, None])
def test_a_stage_trains_its_own_group_and_the_head_and_nothing_else(adapter: Any) -> None:
    module, builder, swap = make(adapter)
    snapshots: dict[int, Any] = {}
    for index in (1, 2, 3, 4):
        stage = Stage(builder, swap, index, snapshots, seed=index)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        snapshots[index] = train(module, stage)
        moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
        assert moved
        assert all(name.startswith((f"network.blocks.{4 - index}.", "network.head.")) for name in moved)
        assert set(snapshots[index]) == set(stage.owned_names())


@pytest.mark.parametrize("adapter", [LORA, None])
@torch.no_grad()
def test_after_each_stage_all_stages_before_still_act(adapter: Any) -> None:
    # injecting the next stage's adapters must not draw the earlier ones again
    module, builder, swap = make(adapter)
    snapshots: dict[int, Any] = {}
    for index in (1, 2, 3):
        with torch.enable_grad():
            snapshots[index] = train(module, Stage(builder, swap, index, snapshots, seed=index))
        trained = module(X).clone()
        swap.install(builder.build(index, snapshots))
        assert torch.equal(module(X), trained)
    for index in (1, 2):
        changed = copy.deepcopy(snapshots)
        changed[index] = {name: tensor + 1.0 for name, tensor in changed[index].items()}
        swap.install(builder.build(3, changed))
        assert not torch.equal(module(X), trained)


@pytest.mark.parametrize("adapter", [LORA, None])
@torch.no_grad()
def test_a_shorter_prefix_serves_as_if_the_rest_had_never_been_trained(adapter: Any) -> None:
    module, builder, swap = make(adapter)
    snapshots: dict[int, Any] = {}
    answers = []
    for index in (1, 2, 3):
        with torch.enable_grad():
            snapshots[index] = train(module, Stage(builder, swap, index, snapshots, seed=index))
        answers.append(module(X).clone())
    for index in (1, 2):
        swap.install(builder.build(index, {stage: snapshots[stage] for stage in range(1, index + 1)}))
        assert torch.equal(module(X), answers[index - 1])


@pytest.mark.parametrize("adapter", [LORA, None])
@torch.no_grad()
def test_the_users_module_comes_back_untouched(adapter: Any) -> None:
    module, builder, swap = make(adapter)
    before, parts = copy.deepcopy(module.state_dict()), [id(part) for part in module.modules()]
    answer = module(X)
    with torch.enable_grad():
        train(module, Stage(builder, swap, 2, {1: _snapshot(builder, swap)}, seed=1))
    swap.restore()
    assert [id(part) for part in module.modules()] == parts
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(module(X), answer)


def _snapshot(builder: StageBuilder, swap: ModuleSwap) -> dict[str, torch.Tensor]:
    return Stage(builder, swap, 1, {}, seed=0).snapshot()


@torch.no_grad()
def test_fresh_lora_adapters_change_nothing_until_they_are_trained() -> None:
    module, builder, swap = make()
    answer = module(X)
    Stage(builder, swap, 1, {}, seed=1)
    assert torch.equal(module(X), answer)


def test_a_head_tied_to_the_embedding_is_trained_without_it() -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    embedding = model.transformer.wte.weight.clone()
    builder = StageBuilder(model, find_layers(model, 2), resolve_adapter(LORA))
    swap = ModuleSwap(model, builder.originals)
    stage = Stage(builder, swap, 1, {}, seed=0)
    set_trainable(model, stage.trainable.values())
    ids = torch.randint(60, (2, 5))
    model(ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in stage.trainable.values():
            if parameter.grad is not None:
                parameter -= parameter.grad
    assert torch.equal(model.transformer.wte.weight, embedding)
    assert not torch.equal(model.lm_head.weight, embedding)
    swap.restore()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_head_under_two_names_is_swapped_at_both() -> None:
    module = Classifier(4)
    module.alias = module.network.head
    builder = StageBuilder(module, find_layers(module, 2), None)
    swap = ModuleSwap(module, builder.originals)
    swap.install(builder.build(1, {}, seed=0))
    assert module.alias is module.network.head
    assert module.alias is not builder.originals["network.head"]
    swap.restore()
    assert module.alias is module.network.head is builder.originals["network.head"]


def test_parameters_that_the_user_froze_stay_frozen() -> None:
    module = Classifier(4)
    module.network.blocks[3].norm.requires_grad_(False)
    builder = StageBuilder(module, find_layers(module, 4), None)
    stage = Stage(builder, ModuleSwap(module, builder.originals), 1, {}, seed=0)
    assert "network.blocks.3.linear.weight" in stage.trainable
    assert "network.blocks.3.norm.weight" not in stage.trainable


def test_nothing_to_train_is_refused() -> None:
    module = Classifier(4)
    module.network.head.requires_grad_(False)
    with pytest.raises(LayersError, match=r"The head \(network\.head\) has no trainable parameter"):
        StageBuilder(module, find_layers(module, 2), None)
    module = Classifier(4)
    module.network.blocks.requires_grad_(False)
    with pytest.raises(LayersError, match=r"Layer group 1 .* has no trainable parameter"):
        StageBuilder(module, find_layers(module, 2), None)
    StageBuilder(module, find_layers(module, 2), resolve_adapter(LORA))


def test_a_module_that_is_fitted_without_gradients_is_refused() -> None:
    module = Classifier(4).requires_grad_(False)
    with pytest.raises(LayersError, match=r"No parameter of Classifier is trainable: .* fitted without gradients"):
        StageBuilder(module, find_layers(module, 2), None)


def test_a_snapshot_of_something_else_is_refused() -> None:
    _, builder, swap = make()
    snapshot = _snapshot(builder, swap)
    name = next(iter(snapshot))
    with pytest.raises(AdapterError, match="has shape"):
        builder.build(1, {1: {**snapshot, name: torch.zeros(1, 1, 1)}})
    snapshot.pop(name)
    with pytest.raises(AdapterError, match=f"has no tensor {name}"):
        builder.build(1, {1: snapshot})


def test_the_table_says_what_each_stage_trains() -> None:
    table = describe_layers(timm.create_model("vit_tiny_patch16_224", num_classes=10), 6)
    rows = {row.name: row for row in table.rows}
    assert [row.name for row in table.rows] == ["head", *(f"group {i}" for i in range(1, 7)), "frozen"]
    # rank 16 on qkv (192 -> 576), proj (192 -> 192), fc1 (192 -> 768) and fc2 (768 -> 192), in two blocks
    assert rows["group 1"].trainable == 2 * 16 * ((192 + 576) + (192 + 192) + (192 + 768) + (768 + 192))
    assert rows["head"].trainable == 192 * 10 + 10
    assert sum(row.parameters for row in table.rows) == sum(
        p.numel() for p in timm.create_model("vit_tiny_patch16_224", num_classes=10).parameters()
    )
    assert "found by: timm group_matcher" in str(table)


@pytest.mark.parametrize("beside", [True, False], ids=["beside the network", "among its parts"])
def test_what_a_loss_makes_without_contents_is_no_part_of_the_pretrained_model(beside: bool) -> None:
    net = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), "head": nn.Linear(4, 2)})
    module = nn.ModuleDict({"net": net} if beside else dict(net.items()))
    module["criterion"] = nn.ModuleDict({"bank": nn.MSELoss()})
    module["criterion"]["bank"].register_buffer("pointer", torch.empty(1), persistent=False)
    module["criterion"].register_buffer("weight", torch.ones(2))
    frozen = StageBuilder(module, find_layers(module, 2), None).frozen_tensors()
    assert "criterion.weight" in frozen
    assert "criterion.bank.pointer" not in frozen
