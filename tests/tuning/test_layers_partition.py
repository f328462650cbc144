"""Layer groups as a partition: every block in exactly one group, in the order of the forward pass, at any number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import torchmetrics
import torchvision
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_s3t.tuning import Layers, find_layers
from lightning_s3t.tuning.layer_detection.paths import lies_in
from tests.people import Classifier

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
SMALL, LARGE = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 224, 224)


def tv_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 12, 2, 16, 32, num_classes=5)


def hf_swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[2, 2, 6, 2], num_heads=[1, 1, 2, 2], window_size=2
    )
    return transformers.SwinForImageClassification(config)


def hf_convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[3, 3, 9, 3])
    return transformers.ConvNextForImageClassification(config)


def hf_dinov2() -> nn.Module:
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=12, num_attention_heads=2, image_size=28)
    return transformers.Dinov2ForImageClassification(config)


def by_name(kind: str, config: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, kind).from_config(config)


TASK, TEXTS = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
# name: (how to make it, an input, the number of its blocks)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "timm vit": (lambda: timm.create_model("test_vit", depth=12, num_classes=5, img_size=64), SMALL, 12),
    "timm distilled deit": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=24, num_heads=2, num_classes=5), LARGE, 12
    ),
    "timm resnet": (lambda: timm.create_model("test_resnet", num_classes=5), SMALL, 4),
    "timm convnext": (lambda: timm.create_model("test_convnext", num_classes=5), SMALL, 8),
    "timm cait": (
        lambda: timm.create_model("cait_xxs24_224", num_classes=5, img_size=64, embed_dim=24, num_heads=2), SMALL, 24
    ),
    "torchvision efficientnet": (lambda: torchvision.models.efficientnet_b0(num_classes=5), SMALL, 17),
    "torchvision mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), SMALL, 12),
    "torchvision vit": (tv_vit, SMALL, 12),
    "bert": (by_name(TASK, transformers.BertConfig(**TEXT)), IDS, 12),
    "electra": (by_name(TASK, transformers.ElectraConfig(**TEXT, embedding_size=16)), IDS, 12),
    "mistral": (by_name(TASK, transformers.MistralConfig(**GROUPED)), IDS, 12),
    "mixtral with eight experts": (by_name(TEXTS, transformers.MixtralConfig(**GROUPED, num_local_experts=8)), IDS, 12),
    "gpt-neox": (by_name(TEXTS, transformers.GPTNeoXConfig(**TEXT)), IDS, 12),
    "mamba": (
        by_name(TEXTS, transformers.MambaConfig(hidden_size=16, num_hidden_layers=12, vocab_size=60, state_size=4)),
        IDS, 12,
    ),
    "hf dinov2": (hf_dinov2, torch.zeros(1, 3, 28, 28), 12),
    "hf swin": (hf_swin, SMALL, 12),
    "hf convnext": (hf_convnext, SMALL, 18),
    "hand-written": (lambda: Classifier(12), torch.zeros(2, 8), 12),
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: make().eval() for name, (make, _, _) in MODELS.items()}


def in_order(layers: Layers) -> list[str]:
    return [path for group in reversed(layers.groups) for path in group.modules]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_lies_in_one_group_or_the_head_at_the_most(name: str, models: dict[str, nn.Module]) -> None:
    layers = find_layers(models[name], 4)
    owners = [*(group.modules for group in layers.groups), layers.head]
    for parameter, _ in models[name].named_parameters(remove_duplicate=False):
        assert sum(any(lies_in(parameter, path) for path in paths) for paths in owners) <= 1, parameter


@pytest.mark.parametrize("name", MODELS)
def test_no_block_is_left_out(name: str, models: dict[str, nn.Module]) -> None:
    assert len(in_order(find_layers(models[name], 2))) >= MODELS[name][2]


@pytest.mark.parametrize("name", MODELS)
def test_at_the_finest_cut_groups_run_from_the_bottom_to_the_top_and_then_the_head(
    name: str, models: dict[str, nn.Module]
) -> None:
    model, example = models[name], MODELS[name][1]
    slices = 4
    while True:  # as fine as this model goes
        try:
            layers, slices = find_layers(model, slices + 1), slices + 1
        except ValueError:
            break
    layers = find_layers(model, slices)
    index = {path: group.index for group in layers.groups for path in group.modules}
    index |= dict.fromkeys(layers.head, 0)
    calls: list[str] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path)) for path in index
    ]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    ran = [index[path] for path in dict.fromkeys(calls)]
    assert ran == sorted(ran, reverse=True)
    assert set(ran) == set(index.values())


@given(st.integers(2, 16), st.data())
def test_any_number_of_groups_cuts_the_blocks_into_consecutive_runs(depth: int, data: st.DataObject) -> None:
    slices = data.draw(st.integers(1, depth))
    layers = find_layers(Classifier(depth), slices)
    assert in_order(layers) == [f"network.blocks.{block}" for block in range(depth)]
    assert [group.index for group in layers.groups] == list(range(1, slices + 1))
    sizes = [len(group.modules) for group in layers.groups]
    assert sizes == sorted(sizes)  # the lower groups are the larger ones
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["timm vit", "bert", "torchvision vit", "mistral", "hand-written"])
def test_the_second_block_is_not_taken_for_the_eleventh_or_twelfth(name: str, models: dict[str, nn.Module]) -> None:
    groups = find_layers(models[name], 12).groups
    numbers = [
        next(part for part in group.modules[0].replace("_", ".").split(".") if part.isdigit()) for group in groups
    ]
    assert numbers == [str(block) for block in reversed(range(12))]


class Lit(pl.LightningModule):
    """A network inside, as people keep it: metrics, a loss with weights and one with a network beside it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(5))
        self.train_metrics = torchmetrics.MetricCollection([torchmetrics.Accuracy("multiclass", num_classes=5)])
        self.quality = Similarity()
        self.network = network


class Similarity(torchmetrics.Metric):
    """A metric that holds a network of its own, as FID and LPIPS do."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = timm.create_model("test_resnet")

    def update(self) -> None: ...

    def compute(self) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize("name", MODELS)
def test_inside_a_lightning_module_the_same_is_found_below_its_path(name: str, models: dict[str, nn.Module]) -> None:
    alone, inside = find_layers(models[name], 4), find_layers(Lit(models[name]), 4)
    assert in_order(inside) == [f"network.{path}" for path in in_order(alone)]
    assert inside.head == tuple(f"network.{path}" for path in alone.head)
    assert inside.source.removeprefix("the longest list of layers, network.") in alone.source


@pytest.mark.parametrize("name", ["timm vit", "bert", "torchvision vit", "hand-written"])
def test_a_compiled_network_is_cut_as_the_plain_one(name: str, models: dict[str, nn.Module]) -> None:
    network = models[name].network if name == "hand-written" else models[name]
    alone, inside = find_layers(network, 4), find_layers(Lit(torch.compile(network)), 4)
    assert in_order(inside) == [f"network._orig_mod.{path}" for path in in_order(alone)]
    assert inside.head == tuple(f"network._orig_mod.{path}" for path in alone.head)


def test_both_classifiers_of_a_distilled_model_are_the_head(models: dict[str, nn.Module]) -> None:
    assert find_layers(models["timm distilled deit"], 4).head == ("head", "head_dist")


def test_a_network_that_is_registered_twice_is_one_network() -> None:
    module = Lit(timm.create_model("test_vit", num_classes=5))
    module.alias = module.network
    assert find_layers(module, 2).network == "network"
