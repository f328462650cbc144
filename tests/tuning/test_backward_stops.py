"""Below the lowest layer that a stage trains, autograd keeps nothing: the backward pass ends there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.stage_switch import StageSwitch

SLICES = 4
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(12).view(2, 6)


class Module(pl.LightningModule):
    """A network in a LightningModule."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def make_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=3)


def make_resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=3)


def make_bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "a ViT of timm": (make_vit, PICTURES),
    "a ResNet of timm": (make_resnet, PICTURES),
    "a BERT of transformers": (make_bert, TOKENS),
}
ADAPTERS: dict[str, Any] = {"lora": {"peft_type": "LORA", "r": 2}, "whole layers": None}


@dataclass
class Noted:
    """What autograd kept before any block of the stage ran, and while they ran; which blocks' outputs want a gradient."""

    before: int = 0
    inside: int = 0
    begun: bool = False
    outputs: dict[str, bool] = field(default_factory=dict)


@contextmanager
def noted(below: dict[str, nn.Module], trained: dict[str, nn.Module]) -> Iterator[Noted]:
    """Watch a forward pass: the blocks below the stage's, and the stage's own."""
    found = Noted()

    def pack(tensor: Tensor) -> Tensor:
        if found.begun:
            found.inside += 1
        else:
            found.before += 1
        return tensor

    def begin(*_: Any) -> None:
        found.begun = True

    def leave(name: str, output: Any) -> None:
        found.outputs[name] = (output[0] if isinstance(output, tuple) else output).requires_grad

    with ExitStack() as stack:
        for block in trained.values():
            stack.callback(block.register_forward_pre_hook(begin).remove)
        for name, block in below.items():
            handle = block.register_forward_hook(lambda *given, name=name: leave(name, given[-1]))
            stack.callback(handle.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        yield found


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_kept_below_the_lowest_trained_group(network: str, stage: int, adapter: str) -> None:
    make, inputs = NETWORKS[network]
    module = Module(make()).train()
    switch = StageSwitch(module, SLICES, adapter=resolve_adapter(ADAPTERS[adapter]))
    builder = switch.builder
    trained: dict[int, dict[str, Tensor]] = {}
    for index in range(1, stage + 1):
        trained[index] = switch.enter(index, trained, seed=0).snapshot()
    groups = {g.index: {n: module.get_submodule(n) for n in g.modules} for g in builder.layers.groups}
    below = {name: block for index, blocks in groups.items() if index > stage for name, block in blocks.items()}
    with noted(below, groups[stage]) as found:
        module.network(inputs)
    assert found.before == 0
    assert len(found.outputs) >= SLICES - stage
    assert not any(found.outputs.values())
    assert found.inside > 0  # the hook does see what is kept
