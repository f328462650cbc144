"""What is trained must act when it serves, and must come back from its snapshot to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.freezing import ModuleFlags, freeze_statistics, set_trainable
from lightning_s3t.tuning.stages import Stage
from lightning_s3t.tuning.swap import ModuleSwap
from tests.people import Classifier

LORA: Any = {"peft_type": "LORA", "r": 2}
ADAPTERS: dict[str, Any] = {
    "whole layers": None,
    "lora": {**LORA, "lora_dropout": 0.1},
    "dora": {**LORA, "use_dora": True},
    "ia3": {"peft_type": "IA3"},
}
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Course:
    """A module through its stages: build, train a little, keep."""

    def __init__(self, module: nn.Module, adapter: Any = LORA, slices: int = 2) -> None:
        self.module = module
        self.builder = StageBuilder(module, find_layers(module, slices), resolve_adapter(adapter))
        self.swap = ModuleSwap(module, self.builder.originals)
        self.flags = ModuleFlags(module)
        self.snapshots: dict[int, dict[str, Tensor]] = {}

    def train(self, *inputs: Tensor) -> Stage:
        """Train the next stage on the inputs."""
        number = len(self.snapshots) + 1
        self.flags.restore()  # what is trainable in the user's module says what is trained of a whole layer
        stage = Stage(self.builder, self.swap, number, self.snapshots, seed=number)
        set_trainable(self.module, stage.trainable.values())
        self.module.train()
        freeze_statistics(self.module, stage.owned.values())
        optimizer = torch.optim.SGD(stage.trainable.values(), lr=0.02)
        stage.watch()
        for _ in range(2):
            optimizer.zero_grad()
            (self.answer(*inputs) - 1).square().mean().backward()
            optimizer.step()
        self.module.eval()
        self.snapshots[number] = stage.snapshot()
        return stage

    def answer(self, *inputs: Tensor) -> Tensor:
        output = self.module(*inputs)
        return output if isinstance(output, Tensor) else output.logits

    def serve(self, *inputs: Tensor) -> Tensor:
        """Answer as a server does."""
        self.module.eval()
        with torch.inference_mode():
            answer = self.answer(*inputs).clone()
        assert answer.isfinite().all()
        return answer


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_early_stage_trains_its_group_and_head_alone(kind: str) -> None:
    course = Course(Classifier(4), ADAPTERS[kind], slices=4)
    for number in (1, 2, 3, 4):
        stage = course.train(X)
        trainable = {name for name, p in course.module.named_parameters() if p.requires_grad}
        assert trainable == set(stage.trainable)
        assert {name.split(".")[2] for name in trainable if "blocks" in name} == {str(4 - number)}
        for below in range(4 - number):  # later groups are still the pretrained modules themselves
            block = f"network.blocks.{below}"
            assert all(
                course.module.get_submodule(name) is original
                for name, original in course.builder.originals.items()
                if name.startswith(block)
            )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_snapshot_serves_as_the_trained_stage_did_to_the_bit(kind: str) -> None:
    course = Course(Classifier(4), ADAPTERS[kind])
    for number in (1, 2):
        course.train(X)
        trained = course.serve(X)
        course.swap.restore()
        course.swap.install(course.builder.build(number, course.snapshots))
        assert torch.equal(course.serve(X), trained)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_restored_the_module_is_the_pretrained_one_to_the_bit(kind: str) -> None:
    module = Classifier(4)
    before, course = copy.deepcopy(module.state_dict()), Course(module, ADAPTERS[kind])
    course.swap.restore()
    pretrained = course.serve(X)
    course.train(X)
    course.train(X)
    assert not torch.equal(course.serve(X), pretrained)
    course.swap.restore()
    assert torch.equal(course.serve(X), pretrained)
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_looking_for_stages_leaves_the_module_untouched() -> None:
    module = Classifier(4)
    before = [(name, id(part), part.training) for name, part in module.named_modules()]
    flags = [(id(p), p.requires_grad) for p in module.parameters()]
    builder = Course(module).builder
    builder.build(2, {}, seed=1)
    builder.count_trainable()
    assert [(name, id(part), part.training) for name, part in module.named_modules()] == before
    assert [(id(p), p.requires_grad) for p in module.parameters()] == flags


def torch_encoder(**arguments: Any) -> nn.Module:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **arguments) for _ in range(2)]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60))


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(10).reshape(2, 5)
NETWORKS: dict[str, tuple[Any, Tensor]] = {
    "torch encoder layers": (lambda: torch_encoder(), TOKENS),
    # in eval mode without gradients these run in one fused call on the layers' weights
    "torch encoder layers, batch first": (lambda: torch_encoder(batch_first=True), TOKENS),
    "torchvision vit": (vision_transformer, IMAGES),
    "timm vit": (lambda: timm.create_model("test_vit", depth=2, img_size=16, num_classes=3), IMAGES),
    "gpt2": (gpt2, IDS),
    "hand-written": (lambda: Classifier(2), X),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("adapter", [{**LORA, "init_lora_weights": False}, None], ids=["lora", "whole layers"])
def test_a_trained_layer_group_acts_when_it_serves(adapter: Any, name: str) -> None:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    course = Course(make(), adapter)
    course.train(inputs)
    with_group = course.serve(inputs)
    stand_ins = course.builder.build(1, course.snapshots)
    course.swap.install({name: stand_ins[name] for name in course.builder.layers.head})
    assert not torch.equal(course.serve(inputs), with_group)


@pytest.mark.parametrize("name", NETWORKS)
def test_serving_without_gradients_answers_as_with_them(name: str) -> None:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    course = Course(make(), {**LORA, "init_lora_weights": False})
    course.train(inputs)
    set_trainable(course.module, course.module.parameters())
    torch.testing.assert_close(course.serve(inputs), course.answer(inputs))


def test_a_layer_that_the_network_never_calls_is_named() -> None:
    course = Course(torch_encoder(), {**LORA, "target_modules": ["linear1", "out_proj"]})
    assert course.train(TOKENS).idle_modules() == ["1.self_attn.out_proj"]


def test_a_network_that_calls_every_layer_has_no_idle_ones() -> None:
    assert Course(Classifier(4)).train(X).idle_modules() == []


def test_layers_that_are_called_through_a_plain_list_are_named() -> None:
    class Hidden(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.kept = list(self.network.blocks)  # no swap reaches these references

        def forward(self, x: Tensor) -> Tensor:
            x = self.network.stem(x)
            for block in self.kept:
                x = block(x)
            return self.network.head(x)

    assert Course(Hidden(), None, slices=4).train(X).idle_modules() == ["network.blocks.3"]


def test_statistics_of_an_owned_batch_norm_are_kept_in_the_snapshot() -> None:
    course = Course(Classifier(4), None, slices=4)
    before = course.module.network.blocks[3].norm.running_mean.clone()
    course.train(X)
    name = "network.blocks.3.norm.running_mean"
    assert not torch.equal(course.snapshots[1][name], before)
    assert torch.equal(course.builder.originals["network.blocks.3"].norm.running_mean, before)


def test_statistics_of_a_head_are_kept_in_the_snapshot() -> None:
    module = Classifier(4)
    module.network.head = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))
    course = Course(module)
    course.train(X)
    assert not torch.equal(course.snapshots[1]["network.head.0.running_mean"], torch.zeros(16))


def test_a_snapshot_is_a_copy_that_training_on_does_not_change() -> None:
    course = Course(Classifier(4))
    stage = course.train(X)
    kept = {name: tensor.clone() for name, tensor in course.snapshots[1].items()}
    with torch.no_grad():
        for parameter in stage.trainable.values():
            parameter += 1
    assert all(torch.equal(tensor, kept[name]) for name, tensor in course.snapshots[1].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_snapshot_of_another_precision_comes_back_to_the_bit(dtype: torch.dtype) -> None:
    course = Course(Classifier(4).to(dtype), None)
    stage = Stage(course.builder, course.swap, 1, {}, seed=0)
    snapshot = stage.snapshot()
    assert {tensor.dtype for tensor in snapshot.values() if tensor.is_floating_point()} == {dtype}
    course.swap.install(course.builder.build(1, {1: snapshot}))
    own = {name: course.module.get_submodule(name) for name in course.builder.owned(1)}
    for name, module in own.items():
        for relative, tensor in module.state_dict().items():
            assert torch.equal(tensor, snapshot[f"{name}.{relative}"])


def test_every_shard_starts_from_the_head_that_is_kept() -> None:
    course = Course(Classifier(4))
    course.builder.start = {name: torch.full_like(t, 7.0) for name, t in course.builder.base_tensors().items()}
    head = course.builder.build(1, {}, seed=0)["network.head"]
    assert torch.equal(head.weight, torch.full_like(head.weight, 7.0))


def test_a_trained_head_comes_before_the_one_to_start_from() -> None:
    course = Course(Classifier(4))
    course.train(X)
    course.builder.start = {name: torch.full_like(t, 7.0) for name, t in course.builder.base_tensors().items()}
    head = course.builder.build(2, course.snapshots, seed=0)["network.head"]
    assert torch.equal(head.weight, course.snapshots[1]["network.head.weight"])


def test_what_must_be_equal_for_all_units_leaves_the_head_out_under_all_its_names() -> None:
    # the head is drawn again by every start of a script, and the store keeps the one of its first fit
    module = Classifier(4)
    module.alias = module.network.head
    frozen = Course(module).builder.frozen_tensors()
    assert "network.stem.weight" in frozen
    assert not [name for name in frozen if name.startswith(("alias.", "network.head."))]
