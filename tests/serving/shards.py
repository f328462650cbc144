"""Shards that serve: a network, and survivors of any stages with random tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from lightning_s3t.plan import UnitId
from lightning_s3t.serving.passes import Passes, ShardPasses
from lightning_s3t.serving.served_shards import ServedShards
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.stages import collect_tensors

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 2}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))


def make_vit(**options: Any) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=24, num_heads=2, num_classes=5, **options
    )


def make_bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=5,
        )
    )


def make_gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=60, n_positions=16, n_embd=16, n_layer=4, n_head=2, tie_word_embeddings=False
        )
    )


MODELS: dict[str, Any] = {
    "vit": (make_vit, (IMAGES,), {}),
    "resnet": (lambda: timm.create_model("resnet18", num_classes=5), (IMAGES,), {}),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(1, 1, 1, 1), num_classes=5
        ),
        (IMAGES,),
        {},
    ),
    "densenet": (lambda: torchvision.models.densenet121(num_classes=5), (IMAGES,), {}),
    "bert": (make_bert, (), {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS).tril(5)}),
    "gpt2": (make_gpt2, (), {"input_ids": TOKENS, "use_cache": False}),
}


class Shards:
    """Several shards over one network, each at a stage of its own.

    Args:
        network: The network.
        stages: The shards' stages, of four.
        adapter: The adapter.
    """

    def __init__(self, network: nn.Module, stages: Sequence[int], adapter: Any = LORA, layers: Any = None) -> None:
        self.root = network.eval()
        self.builder = StageBuilder(network, find_layers(network, 4, layers), resolve_adapter(adapter))
        self.served = ServedShards(self.builder)
        self.snapshots: dict[UnitId, dict[str, Tensor]] = {}
        self._passes: dict[Passes, ShardPasses] = {}
        for shard, stage in enumerate(stages):
            self.serve(UnitId(shard, tuple(range(stage))))

    def serve(self, unit: UnitId) -> None:
        """Make a shard serve a unit; what it has not yet served gets random tensors."""
        for ancestor in unit.lineage:
            self.snapshots.setdefault(ancestor, self._random(ancestor))
        self.served.load_survivor(unit, tuple(str(ancestor) for ancestor in unit.lineage), self.snapshots.__getitem__)

    @torch.no_grad()
    def ask(self, how: Passes, *args: Any, **kwargs: Any) -> list[Any]:
        """Ask all shards; the first call of a form is a trial."""
        passes = self._passes.setdefault(how, ShardPasses(self.builder, self.served, how))
        return passes.run(self.root.forward, args, kwargs, list(self.served.survivors), {})

    @torch.no_grad()
    def ask_alone(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Ask every shard by itself, with stand-ins built again."""
        found = []
        for unit in self.served.survivors.values():
            passes = ShardPasses(self.builder, fresh := ServedShards(self.builder), "sequential")
            fresh.load_survivor(unit, tuple(map(str, unit.lineage)), self.snapshots.__getitem__)
            found += passes.run(self.root.forward, args, kwargs, [unit.shard], {})
        return found

    def _random(self, unit: UnitId) -> dict[str, Tensor]:
        built = self.builder.build(unit.stage, {}, seed=1)
        own = collect_tensors({name: built[name] for name in self.builder.owned(unit.stage)})
        draw = torch.Generator().manual_seed(hash((unit.shard, *unit.prefix)) % 2**31)
        return {
            name: torch.randn(tensor.shape, generator=draw) * 0.2 if tensor.is_floating_point() else tensor
            for name, tensor in own.items()
        }


def tensor_of(answer: Any) -> Tensor:
    """Return an answer's logits."""
    found: Tensor = answer if isinstance(answer, Tensor) else answer.logits
    return found
