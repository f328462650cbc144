"""Lists what S3T finds in families of models, on the page "Models": `python docs/list_models.py`.

Nothing here is said of a model by hand. Groups and head are those that `describe_layers` finds; an adapter counts if it
can be put into every layer group, and if each module of it then receives a gradient, stage by stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from lightning_s3t.errors import AdapterError
from lightning_s3t.tuning import Layers, StageBuilder, describe_layers, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.freezing import ModuleFlags, set_trainable
from lightning_s3t.tuning.stages import Stage
from lightning_s3t.tuning.swap import ModuleSwap

PAGE = Path(__file__).parent / "models.md"
SLICES = 4
LORA = {"peft_type": "LORA", "r": 2}

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "pad_token_id": 0,
}
TOKENS = torch.arange(3, 9).unsqueeze(0)


INTRODUCTION = f"""# Models

This page lists what S3T detects in common models without any arguments, with {SLICES} slices. A small model without
pretrained weights represents its family: larger ones have more blocks with the same names. For a model of your own:
`s3t layers my_app.models:LitClassifier {SLICES}`, or `describe_layers(model, slices={SLICES})`.

For segmentation networks, recurrent networks and other libraries see [Other libraries](ecosystem.md), which tries whole
scripts.

This page is written by `python docs/list_models.py`, which tries everything on it.

## Layer groups and heads

Group 1 is the top one. Everything outside the groups and the head (stem, embeddings, a final normalisation) stays
frozen.
"""
ABOUT_ADAPTERS = """
## Adapters

The table counts the modules in the groups that each adapter goes on. Each adapter was injected, and each of its
modules received a gradient at its stage. Without `target_modules`, an adapter goes on all linear layers of a group,
or on its convolutions if it has no linear ones; LayerNorm tuning goes on every `nn.LayerNorm`. "without" names the
layers to leave out with `exclude_modules`, because the network reads their weights without calling them. A `-` means
that some group has nothing that the adapter fits, or that PEFT cannot put it there. `adapter=None` trains whole
layers.
"""


@dataclass(frozen=True)
class Family:
    """A kind of model, by a small one of its kind.

    Attributes:
        make: Makes it, without pretrained weights.
        example: An input of it.
    """

    make: Callable[[], nn.Module]
    example: Tensor


class HandWritten(nn.Module):
    """A module as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(6)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Answers with logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class WithHead(nn.Module):
    """An encoder of transformers, which has no head, and a head of one's own."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Answers with logits."""
        return self.head(self.encoder(tokens).last_hidden_state.mean(1))


def of_timm(name: str, size: int, **options: Any) -> Family:
    """Returns a family of timm.

    Args:
        name: The model's name.
        size: The width and height of a picture.
        options: What makes it small.
    """
    return Family(lambda: timm.create_model(name, num_classes=5, **options), torch.zeros(1, 3, size, size))


def classifier(config: Any) -> Family:
    """Returns a family of transformers, with its head for sequences.

    Args:
        config: The configuration.
    """
    return Family(lambda: transformers.AutoModelForSequenceClassification.from_config(config), TOKENS)


def language_model(config: Any) -> Family:
    """Returns a family of transformers, with its head for the next token.

    Args:
        config: The configuration.
    """
    return Family(lambda: transformers.AutoModelForCausalLM.from_config(config), TOKENS)


def _t5_encoder() -> nn.Module:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, vocab_size=60)
    return WithHead(transformers.T5EncoderModel(config), 16)


FAMILIES: dict[str, Family] = {
    "timm `vit_tiny_patch16_224`": of_timm("vit_tiny_patch16_224", 32, img_size=32, embed_dim=48, num_heads=2),
    "timm `deit_tiny_patch16_224`": of_timm("deit_tiny_patch16_224", 32, img_size=32, embed_dim=48, num_heads=2),
    "timm `swin_tiny_patch4_window7_224`": of_timm("swin_tiny_patch4_window7_224", 64, img_size=64, embed_dim=24),
    "timm `convnext_atto`": of_timm("convnext_atto", 64),
    "timm `resnet18`": of_timm("resnet18", 64),
    "timm `efficientnet_b0`": of_timm("efficientnet_b0", 64),
    "timm `mobilenetv3_small_050`": of_timm("mobilenetv3_small_050", 64),
    "timm `eva02_tiny_patch14_224`": of_timm("eva02_tiny_patch14_224", 28, img_size=28),
    "timm `beit_base_patch16_224`": of_timm("beit_base_patch16_224", 32, img_size=32, embed_dim=48, num_heads=2),
    "timm `mixer_s32_224`": of_timm("mixer_s32_224", 64, img_size=64),
    "transformers BERT": classifier(transformers.BertConfig(**TEXT)),
    "transformers RoBERTa": classifier(transformers.RobertaConfig(**TEXT)),
    "transformers DistilBERT": classifier(
        transformers.DistilBertConfig(dim=16, n_layers=4, n_heads=2, hidden_dim=32, vocab_size=60)
    ),
    "transformers DeBERTa-v2": classifier(transformers.DebertaV2Config(**TEXT)),
    "transformers ViT": Family(
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32
            )
        ),
        torch.zeros(1, 3, 32, 32),
    ),
    "transformers GPT-2": language_model(
        transformers.GPT2Config(
            n_embd=16, n_layer=4, n_head=2, vocab_size=60, n_positions=8, bos_token_id=1, eos_token_id=2
        )
    ),
    "transformers Llama": language_model(transformers.LlamaConfig(**TEXT)),
    "transformers Qwen2": language_model(transformers.Qwen2Config(**TEXT, num_key_value_heads=2)),
    "transformers T5, encoder": Family(_t5_encoder, TOKENS),
    "torchvision `resnet18`": Family(lambda: torchvision.models.resnet18(num_classes=5), torch.zeros(1, 3, 64, 64)),
    "torchvision `VisionTransformer`": Family(
        lambda: torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5), torch.zeros(1, 3, 32, 32)
    ),
    "a hand-written module": Family(HandWritten, torch.zeros(1, 8)),
}

ADAPTERS: dict[str, Callable[[nn.Module, Layers], Mapping[str, Any] | None]] = {
    "LoRA": lambda model, layers: LORA,
    "LoRA on convolutions": lambda model, layers: {**LORA, "target_modules": _convolutions(model, layers)},
    "DoRA": lambda model, layers: {**LORA, "use_dora": True},
    "IA³": lambda model, layers: {"peft_type": "IA3"},
    "LayerNorm": lambda model, layers: {"peft_type": "LN_TUNING"},
    "whole layers": lambda model, layers: None,
}


def layers_row(name: str) -> str:
    """Returns a family's line in the table of groups and heads.

    Args:
        name: The family.
    """
    found = describe_layers(FAMILIES[name].make(), SLICES, adapter=None)
    head, *groups, _ = found.rows
    cells = [_span(group.modules) for group in groups]
    return _line([name, *cells, ", ".join(f"`{path}`" for path in head.modules)])


def adapters_row(name: str) -> str:
    """Returns a family's line in the table of adapters: on how many modules each can be used.

    Args:
        name: The family.
    """
    family, cells = FAMILIES[name], []
    for choose in ADAPTERS.values():
        torch.manual_seed(0)
        model = family.make().eval()
        layers = find_layers(model, SLICES)
        cells.append(adapt(model, layers, choose(model, layers), family.example))
    return _line([name, *cells])


def adapt(model: nn.Module, layers: Layers, adapter: Mapping[str, Any] | None, example: Tensor) -> str:
    """Says on what an adapter can be used: "-" where it cannot.

    Args:
        model: The model.
        layers: Its layer groups and head.
        adapter: The adapter, or None for whole layers.
        example: An input of the model.
    """
    try:
        builder = StageBuilder(model, layers, resolve_adapter(adapter))
    except AdapterError:
        return "-"
    idle = sorted({path.rpartition(".")[2] for path in idle_modules(builder, example)})
    if idle and adapter is not None and "exclude_modules" not in adapter:
        without = adapt(model, layers, {**adapter, "exclude_modules": idle}, example)
        return without if without == "-" else f"{without}, without {', '.join(f'`{name}`' for name in idle)}"
    if idle:
        return "-"
    targets = [model.get_submodule(path) for group in builder.targets.values() for path in group]
    kinds = ["blocks" if adapter is None else _kind(module) for module in targets]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def idle_modules(builder: StageBuilder, example: Tensor) -> list[str]:
    """Trains one step of every stage, and returns the modules of which no parameter receives a gradient.

    Args:
        builder: Builds the stages.
        example: An input of the model.
    """
    model, idle, trained = builder.root, [], {}
    swap, flags = ModuleSwap(model, builder.originals), ModuleFlags(model)
    for index in range(1, SLICES + 1):
        flags.restore()
        stage = Stage(builder, swap, index, trained, seed=index)
        set_trainable(model, stage.trainable.values())
        stage.watch()
        answer = model(example)
        getattr(answer, "logits", answer).square().sum().backward()
        idle += stage.idle_modules()
        trained[index] = stage.snapshot()
    swap.restore()
    flags.restore()
    return idle


def page() -> str:
    """Returns the whole page."""
    groups = [f"group {index}" for index in range(1, SLICES + 1)]
    lines = [
        INTRODUCTION,
        _line(["model", *groups, "head"]),
        _line(["---"] * (SLICES + 2)),
        *(layers_row(name) for name in FAMILIES),
        ABOUT_ADAPTERS,
        _line(["model", *ADAPTERS]),
        _line(["---"] * (len(ADAPTERS) + 1)),
        *(adapters_row(name) for name in FAMILIES),
    ]
    return "\n".join(lines) + "\n"


def _convolutions(model: nn.Module, layers: Layers) -> list[str]:
    inside = [f"{path}." for group in layers.groups for path in group.modules]
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and f"{path}.".startswith(tuple(inside))
    ]


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return "convolutions"
    if isinstance(module, nn.LayerNorm):
        return "LayerNorms"
    return "linear"


def _span(paths: tuple[str, ...]) -> str:
    return f"`{paths[0]}`" if len(paths) == 1 else f"`{paths[0]}` ... `{paths[-1]}` ({len(paths)})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
