"""Layer groups and heads of the models that people use, found without help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning import Layers, find_layers
from lightning_s3t.tuning.layer_detection.paths import lies_in

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
IMAGE = {size: torch.zeros(1, 3, size, size) for size in (32, 64, 224)}


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
SWIN = transformers.SwinConfig(
    image_size=32, embed_dim=12, depths=[2, 2, 6, 2], num_heads=[1, 2, 2, 2], window_size=2, patch_size=2
)
WAV2VEC2 = transformers.Wav2Vec2Config(
    **TINY, vocab_size=30, conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2
)
TIMM_WRAPPER = transformers.TimmWrapperConfig(architecture="resnet18", num_labels=2)
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
    "torchvision efficientnet": (lambda: torchvision.models.efficientnet_b0(num_classes=5), IMAGE[64], ("classifier",), "features.7.0", "features.1.0"),
    "torchvision mobilenetv3": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5), IMAGE[64], ("classifier",), "features.11", "features.1"
    ),
    "torchvision densenet": (
        lambda: torchvision.models.densenet121(num_classes=5), IMAGE[64], ("classifier",),
        "features.denseblock4.denselayer16", "features.denseblock1.denselayer1",
    ),
    "torchvision regnet": (
        lambda: torchvision.models.regnet_y_400mf(num_classes=5), IMAGE[64], ("fc",), "block4-5", "block1-0"
    ),
    "torchvision inception": (
        lambda: torchvision.models.inception_v3(num_classes=5, init_weights=False),
        torch.zeros(1, 3, 96, 96), ("fc",), "Mixed_7c", "Mixed_5b",
    ),
    "hf swin": (lambda: transformers.SwinForImageClassification(SWIN), IMAGE[32], ("classifier",), "layers.3.blocks.1", "layers.0.blocks.0"),
    "hf convnext": (
        lambda: transformers.ConvNextForImageClassification(transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 32])),
        IMAGE[64], ("classifier",), "stages.3.layers.2", "stages.0.layers.0",
    ),
    "hf wav2vec2": (
        lambda: transformers.Wav2Vec2ForSequenceClassification(WAV2VEC2), torch.zeros(1, 800),
        ("projector", "classifier"), "wav2vec2.encoder.layers.3", "wav2vec2.encoder.layers.0",
    ),
    "bert masked lm": (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)), IDS, ("cls",), "bert.encoder.layer.3", "bert.encoder.layer.0"),
    "modernbert": (
        lambda: classifier(transformers.ModernBertConfig(**{**TEXT, "cls_token_id": 1, "sep_token_id": 2})),
        IDS, ("head", "classifier"), "model.layers.3", "model.layers.0",
    ),
    "mixtral": (
        lambda: language_model(transformers.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=8)),
        IDS, ("lm_head",), "model.layers.3", "model.layers.0",
    ),
    "timm without a description": (lambda: image_model("pit_ti_224"), IMAGE[224], ("head",), "transformers.2", "transformers.0"),
    "timm cait": (lambda: image_model("cait_xxs24_224"), IMAGE[224], ("head",), "blocks_token_only.1", "blocks.0"),
    "timm densenet": (lambda: image_model("densenet121"), IMAGE[64], ("classifier",), "features.denseblock4.denselayer16", "features.denseblock1.denselayer1"),
    "timm with two heads": (lambda: image_model("levit_128s"), IMAGE[224], ("head", "head_dist"), "stages.2.blocks.3", "stages.0.blocks.0"),
}  # fmt: skip


def calls_of(model: nn.Module, paths: list[str], example: torch.Tensor) -> list[str]:
    """The modules in the order in which a forward pass finishes them."""
    calls: list[str] = []
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    with torch.no_grad():
        model(example)
    return calls


def blocks_of(layers: Layers) -> list[str]:
    return [path for group in reversed(layers.groups) for path in group.modules]


@pytest.mark.parametrize("name", MODELS)
def test_the_groups_run_from_the_bottom_up_and_then_the_head(name: str) -> None:
    make, example, head, top, bottom = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    layers = find_layers(model, 3)
    assert layers.head == head
    assert layers.network == ""
    assert [group.index for group in layers.groups] == [1, 2, 3]
    assert any(f".{path}".endswith(f".{top}") for path in layers.groups[0].modules)
    assert any(f".{path}".endswith(f".{bottom}") for path in layers.groups[2].modules)

    blocks = blocks_of(layers)
    calls = calls_of(model, [*blocks, *head], example)
    assert [path for path in calls if path not in head] == blocks
    assert set(calls[len(blocks) :]) == set(head)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("timm vit", ["patch_embed", "norm"]),
        ("timm swin", ["patch_embed", "norm"]),
        ("timm convnext", ["stem", "head.norm"]),
        ("timm resnet", ["conv1", "bn1"]),
        ("timm efficientnet", ["conv_stem", "bn1"]),
        ("timm mobilenetv3", ["conv_stem", "bn1", "conv_head"]),
        ("timm densenet", ["features.conv0", "features.norm0", "features.norm5"]),
        ("bert", ["bert.embeddings", "bert.pooler"]),
        ("gpt2", ["transformer.wte", "transformer.wpe", "transformer.ln_f"]),
        ("torchvision convnext", ["features.0"]),
        ("torchvision efficientnet", ["features.0"]),
        ("torchvision densenet", ["features.conv0", "features.norm0", "features.norm5"]),
        ("torchvision vit", ["conv_proj", "encoder.ln"]),
    ],
)
def test_stem_and_last_normalisation_are_in_no_group(name: str, frozen: list[str]) -> None:
    model = MODELS[name][0]()
    layers = find_layers(model, 2)
    for path in frozen:
        assert model.get_submodule(path) is not None
        assert not any(lies_in(path, other) or lies_in(other, path) for other in [*blocks_of(layers), *layers.head])


@pytest.mark.parametrize(
    ("name", "last"), [("timm efficientnet", ("conv_head", "bn2")), ("torchvision efficientnet", ("features.8",))]
)
def test_a_last_convolution_is_in_the_top_group(name: str, last: tuple[str, ...]) -> None:
    assert find_layers(MODELS[name][0](), 4).groups[0].modules[-len(last) :] == last


def test_a_downsampling_is_in_the_group_of_its_block() -> None:
    model = MODELS["timm swin"][0]()
    groups = {path: group.index for group in find_layers(model, 12).groups for path in group.modules}
    for stage in (1, 2, 3):
        assert groups[f"layers.{stage}.downsample"] == groups[f"layers.{stage}.blocks.0"]


@pytest.mark.parametrize(
    ("make", "network"),
    [
        (lambda: image_model("test_vit"), "model"),
        (lambda: classifier(transformers.BertConfig(**TEXT)), "model"),
        (lambda: torchvision.models.resnet18(num_classes=5), "model"),
        (lambda: transformers.TimmWrapperForImageClassification(TIMM_WRAPPER), "model"),
    ],
)
def test_the_network_is_the_library_s_model(make: Callable[[], nn.Module], network: str) -> None:
    assert find_layers(nn.ModuleDict({"model": make()}), 2).network == network


def test_a_compiled_model_is_called_through_its_wrapper() -> None:
    module = nn.ModuleDict({"model": torch.compile(image_model("test_vit"))})
    layers = find_layers(module, 2)
    assert (layers.network, layers.head) == ("model", ("model._orig_mod.head",))


def test_a_base_model_s_pooler_is_no_head() -> None:
    module = nn.ModuleDict({"bert": transformers.BertModel(transformers.BertConfig(**TEXT)), "out": nn.Linear(16, 2)})
    layers = find_layers(module, 2)
    assert (layers.network, layers.head) == ("", ("out",))


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "vocab_size": 60}


@pytest.mark.parametrize("decoder_layers", [4, 2])
def test_an_encoder_decoder_is_refused_and_says_how_to_name_one(decoder_layers: int) -> None:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, num_decoder_layers=decoder_layers))
    message = rf"has 2 stacks of layers: encoder\.block \(4\), decoder\.block \({decoder_layers}\).*layers='decoder\.block', head='"
    with pytest.raises(LayersError, match=message):
        find_layers(model, 2)
    layers = find_layers(model, 2, layers="decoder.block")
    assert (layers.groups[0].modules[-1], layers.head) == (f"decoder.block.{decoder_layers - 1}", ("lm_head",))


def test_the_two_towers_of_clip_are_refused() -> None:
    vision = {**TINY, "num_hidden_layers": 6, "image_size": 32, "patch_size": 16}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=vision))
    with pytest.raises(LayersError, match=r"CLIPModel has 2 stacks of layers"):
        find_layers(model, 2)


def test_blocks_that_share_a_parameter_are_refused_by_its_name() -> None:
    # CoaT's serial and parallel blocks share their relative position encodings
    with pytest.raises(LayersError, match=r"is the same parameter as parallel_blocks\.0\..* in layer group 1"):
        find_layers(image_model("coat_tiny"), 2)
