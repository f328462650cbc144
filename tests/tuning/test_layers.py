"""Layer groups and heads of the models that people use, found without help."""

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
from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning import find_layers
from tests.people import Classifier

TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {
    **TINY,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 40,
}
IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
IMAGE = {size: torch.zeros(1, 3, size, size) for size in (16, 32, 64, 224)}


def classifier(config: Any) -> nn.Module:
    return transformers.AutoModelForSequenceClassification.from_config(config)


def language_model(config: Any) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_config(config)


def image_model(name: str, **arguments: Any) -> nn.Module:
    return timm.create_model(name, num_classes=5, **arguments)


class WithHead(nn.Module):
    """A backbone without a head, and a head of one's own."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(ids).last_hidden_state[:, 0])


def t5_encoder() -> nn.Module:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, vocab_size=60)
    return WithHead(transformers.T5EncoderModel(config), 16)


GPT2 = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 60, "n_positions": 40, "pad_token_id": 0}
DISTILBERT = {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60}
QWEN2 = {**TEXT, "num_key_value_heads": 2}

# name: (how to make it, an input, the head, the top block, a block of the bottom group, with 3 groups)
MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, tuple[str, ...], str, str]] = {
    "timm vit": (lambda: image_model("vit_tiny_patch16_224", img_size=32), IMAGE[32], ("head",), "blocks.11", "blocks.0"),
    "timm deit": (lambda: image_model("deit_tiny_patch16_224", img_size=32), IMAGE[32], ("head",), "blocks.11", "blocks.3"),
    "timm swin": (
        lambda: image_model("swin_tiny_patch4_window7_224"), IMAGE[224], ("head.fc",), "layers.3.blocks.1", "layers.0.blocks.0"
    ),
    "timm convnext": (lambda: image_model("convnext_atto"), IMAGE[64], ("head.fc",), "stages.3.blocks.1", "stages.0.blocks.0"),
    "timm resnet": (lambda: image_model("resnet18").eval(), IMAGE[64], ("fc",), "layer4.1", "layer1.0"),
    "timm efficientnet": (lambda: image_model("efficientnet_b0").eval(), IMAGE[64], ("classifier",), "blocks.6", "blocks.0"),
    "timm mobilenetv3": (lambda: image_model("mobilenetv3_small_050").eval(), IMAGE[64], ("classifier",), "blocks.5", "blocks.0"),
    "timm eva": (lambda: image_model("eva02_tiny_patch14_224"), IMAGE[224], ("head",), "blocks.11", "blocks.0"),
    "timm beit": (lambda: image_model("beit_base_patch16_224"), IMAGE[224], ("head",), "blocks.11", "blocks.0"),
    "timm mixer": (lambda: image_model("mixer_s32_224"), IMAGE[224], ("head",), "blocks.7", "blocks.0"),
    "bert": (
        lambda: classifier(transformers.BertConfig(**TEXT)), IDS, ("classifier",), "bert.encoder.layer.3", "bert.encoder.layer.0"
    ),
    "roberta": (
        lambda: classifier(transformers.RobertaConfig(**TEXT)), IDS, ("classifier",), "roberta.encoder.layer.3", "roberta.encoder.layer.0"
    ),
    "distilbert": (
        lambda: classifier(transformers.DistilBertConfig(**DISTILBERT)),
        IDS, ("pre_classifier", "classifier"), "distilbert.transformer.layer.3", "distilbert.transformer.layer.0",
    ),
    "deberta-v2": (
        lambda: classifier(transformers.DebertaV2Config(**TEXT)), IDS, ("pooler", "classifier"), "deberta.encoder.layer.3", "deberta.encoder.layer.1"
    ),
    "hf vit": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, image_size=32)),
        IMAGE[32], ("classifier",), "3", "0",
    ),
    "gpt2": (lambda: language_model(transformers.GPT2Config(**GPT2)), IDS, ("lm_head",), "transformer.h.3", "transformer.h.1"),
    "llama": (lambda: language_model(transformers.LlamaConfig(**TEXT)), IDS, ("lm_head",), "model.layers.3", "model.layers.1"),
    "qwen2": (lambda: language_model(transformers.Qwen2Config(**QWEN2)), IDS, ("lm_head",), "model.layers.3", "model.layers.0"),
    "t5 encoder": (t5_encoder, IDS, ("head",), "backbone.encoder.block.3", "backbone.encoder.block.0"),
    "torchvision resnet": (
        lambda: torchvision.models.resnet18(num_classes=5).eval(), IMAGE[64], ("fc",), "layer4.1", "layer1.0"
    ),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5),
        IMAGE[32], ("heads",), "encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_0",
    ),
    "torchvision convnext": (
        lambda: torchvision.models.convnext_tiny(num_classes=5), IMAGE[64], ("classifier",), "features.7.2", "features.1.0"
    ),
    "torchvision swin": (lambda: torchvision.models.swin_t(num_classes=5), IMAGE[64], ("head",), "features.7.1", "features.1.0"),
    "hand-written": (lambda: Classifier(12), torch.zeros(2, 8), ("network.head",), "network.blocks.11", "network.blocks.3"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_groups_and_head_are_found_and_run_from_the_bottom_to_the_head(name: str) -> None:
    make, example, head, top, bottom = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    layers = find_layers(model, 3)
    assert layers.head == head
    assert [group.index for group in layers.groups] == [1, 2, 3]
    assert any(path == top or path.endswith(f".{top}") for path in layers.groups[0].modules)
    assert any(path == bottom or path.endswith(f".{bottom}") for path in layers.groups[2].modules)

    in_order = [path for group in reversed(layers.groups) for path in group.modules]
    assert len(set(in_order)) == len(in_order)
    calls: list[str] = []
    for path in [*in_order, *head]:
        # a head of several modules may hold one that is called early (a pooler)
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    with torch.no_grad():
        model(example)
    first_calls = list(dict.fromkeys(calls))
    assert [path for path in first_calls if path in in_order] == [path for path in in_order if path in first_calls]
    assert first_calls[-1] == head[-1]
    assert len(first_calls) >= len(in_order)


def test_blocks_are_cut_by_whole_path_parts() -> None:
    groups = find_layers(Classifier(12), 12).groups
    assert [group.modules for group in groups[:3]] == [
        ("network.blocks.11",),
        ("network.blocks.10",),
        ("network.blocks.9",),
    ]


def test_where_blocks_do_not_divide_the_lower_groups_are_larger() -> None:
    assert [len(group.modules) for group in find_layers(Classifier(11), 4).groups] == [2, 3, 3, 3]


def test_metrics_and_losses_beside_the_network_do_not_confuse() -> None:
    class Busy(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.metrics = torchmetrics.MetricCollection(
                [torchmetrics.Accuracy("binary"), torchmetrics.F1Score("binary")]
            )
            self.losses = nn.ModuleList([nn.CrossEntropyLoss(), nn.MSELoss()])

    layers = find_layers(Busy(), 4)
    assert (layers.network, layers.head) == ("network", ("network.head",))


def test_a_network_without_a_head_takes_the_one_beside_it() -> None:
    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("test_vit", num_classes=0)
            self.projection = nn.Linear(64, 5)

    layers = find_layers(Lit(), 2)
    assert (layers.network, layers.head) == ("", ("projection",))


def test_layers_and_head_can_be_named() -> None:
    module = Classifier(4)
    by_list = find_layers(module, 2, layers="network.blocks", head="network.head")
    by_path = find_layers(module, 2, layers=[f"network.blocks.{i}" for i in range(4)], head=["network.head"])
    by_group = find_layers(module, 2, layers=[["network.blocks.0"], ["network.blocks.1", "network.blocks.2"]])
    assert by_list.groups == by_path.groups == find_layers(module, 2).groups
    assert [group.modules for group in by_group.groups] == [
        ("network.blocks.1", "network.blocks.2"),
        ("network.blocks.0",),
    ]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
        self.critic = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])


class Headless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(2, 2, 1) for _ in range(3)])


def tv_pair() -> nn.Module:
    return nn.ModuleDict({"a": torchvision.models.resnet18(), "b": torchvision.models.resnet18()})


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            lambda: Classifier(4),
            {"slices": 5},
            r"has 4 blocks \(network\.blocks\.0, .*\) for 5 slices.*use slices=4 or fewer",
        ),
        (
            lambda: Classifier(4),
            {"layers": "network.block"},
            r"no module 'network\.block'\. Did you mean 'network\.blocks'",
        ),
        (lambda: Classifier(4), {"head": "head"}, r"no module 'head'\. Did you mean 'network\.head'"),
        (lambda: Classifier(4), {"head": "network.blocks.3"}, r"The block network\.blocks\.3 and the head .* overlap"),
        (lambda: Classifier(4), {"head": "accuracy"}, r"The head \(accuracy\) has no parameters"),
        (lambda: Classifier(4), {"layers": "network.head"}, r"'network\.head' is a Linear without blocks"),
        (lambda: Classifier(4), {"layers": ["network.blocks.0", "network.blocks.0.linear"]}, r"lies in the block"),
        (lambda: Classifier(4), {"layers": ["network.blocks.0", "network.blocks.0"]}, r"A block is named twice"),
        (lambda: Classifier(4), {"layers": [["network.blocks.0"]]}, r"names 1 groups for 2 slices"),
        (Two, {}, r"Two has 2 lists of .* layers: generator, critic"),
        (tv_pair, {}, r"holds 2 networks: a, b"),
        (Headless, {}, r"No head was found in Headless"),
        (
            lambda: timm.create_model("test_vit", num_classes=0),
            {},
            r"No head was found in VisionTransformer after the model itself",
        ),
        (lambda: nn.Linear(2, 2), {}, r"No list of layers was found in Linear"),
    ],
)
def test_what_cannot_be_found_is_refused_with_what_was_seen(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LayersError, match=message):
        find_layers(make(), **{"slices": 2, **arguments})


def test_an_encoder_decoder_is_refused_and_says_how_to_name_one() -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, vocab_size=60)
    with pytest.raises(LayersError, match=r"has 2 stacks of 4 layers: encoder\.block, decoder\.block"):
        find_layers(transformers.T5ForConditionalGeneration(config), 2)


def test_a_short_sequential_around_a_long_one_is_looked_into() -> None:
    body = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    layers = find_layers(nn.Sequential(nn.Linear(4, 4), body, nn.Linear(4, 2)), 3)
    assert layers.groups[0].modules == ("1.4", "1.5")
    assert layers.head == ("2",)
