"""Adapters: which modules get one, how they are drawn, which are refused."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from torch import nn

from lightning_s3t.errors import AdapterError
from lightning_s3t.tuning.adapters import (
    adapter_tensors,
    check_adapter,
    describe_adapter,
    find_targets,
    inject_adapter,
    resolve_adapter,
)
from lightning_s3t.tuning.layer_table import describe_layers
from lightning_s3t.tuning.layers import find_layers
from tests.people import Classifier

LORA = {"peft_type": "LORA", "r": 2}


def targets(model: nn.Module, adapter: Any = LORA, slices: int = 2) -> dict[int, tuple[str, ...]]:
    config = resolve_adapter(adapter)
    assert config is not None
    found = find_targets(model, find_layers(model, slices), config)
    check_adapter(model, found, config)
    return found


def test_without_names_every_linear_layer_of_a_group_gets_one() -> None:
    assert targets(timm.create_model("vit_tiny_patch16_224", depth=2))[1] == (
        "blocks.1.attn.qkv",
        "blocks.1.attn.proj",
        "blocks.1.mlp.fc1",
        "blocks.1.mlp.fc2",
    )


def test_convolutions_get_one_where_nothing_is_linear() -> None:
    found = targets(timm.create_model("resnet18"), slices=4)
    assert found[4] == tuple(f"layer1.{block}.conv{number}" for block in (0, 1) for number in (1, 2))


def test_transposed_linear_layers_of_transformers_get_one() -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60)
    assert "transformer.h.1.attn.c_attn" in targets(transformers.AutoModelForCausalLM.from_config(config))[1]


def test_projections_that_torchs_attention_reads_without_calling_get_none() -> None:
    layers = [nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    assert targets(model)[1] == ("1.linear1", "1.linear2")


def test_names_are_matched_as_peft_does() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=12)
    found = targets(model, {**LORA, "target_modules": ["qkv"]}, slices=12)
    assert found[11] == ("blocks.1.attn.qkv",)
    found = targets(model, {**LORA, "target_modules": r".*\.mlp\.fc\d", "exclude_modules": ["fc2"]}, slices=12)
    assert found[1] == ("blocks.11.mlp.fc1",)


KINDS: dict[str, dict[str, Any]] = {
    "dora": {**LORA, "use_dora": True},
    "rslora": {**LORA, "use_rslora": True},
    "ia3": {"peft_type": "IA3"},
    "layernorm": {"peft_type": "LN_TUNING"},
    "oft": {"peft_type": "OFT", "oft_block_size": 4, "r": 0},
    "loha": {"peft_type": "LOHA", "r": 2},
    "lokr": {"peft_type": "LOKR", "r": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_many_kinds_can_be_used(kind: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=16, num_heads=2)
    config = resolve_adapter(KINDS[kind])
    assert config is not None
    for name in targets(model, KINDS[kind])[1]:
        assert any(
            tensor.requires_grad
            for tensor in adapter_tensors(inject_adapter(model.get_submodule(name), name, config, 0)).values()
        )


def test_layernorm_tuning_of_a_layernorm_is_nothing_to_warn_of() -> None:
    config = resolve_adapter({"peft_type": "LN_TUNING"})
    assert config is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject_adapter(nn.LayerNorm(4), "norm", config, 0)


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown type": ({"peft_type": "LOWRA"}, "PEFT knows no adapter of type 'LOWRA'. Found: .*LORA"),
    "unknown option": ({**LORA, "rank": 4}, "LoraConfig does not take the adapter"),
    "not an adapter": (3, "to be a PeftConfig, a dict of one or None but got int"),
    "modules to save": ({**LORA, "modules_to_save": ["head"]}, "sets modules_to_save"),
    "biases": ({**LORA, "bias": "all"}, r"trains pretrained parameters of network\.blocks\.2\.linear: bias"),
    "pissa": ({**LORA, "init_lora_weights": "pissa"}, "changes the pretrained weights of network.blocks.2.linear"),
    "olora": ({**LORA, "init_lora_weights": "olora"}, "changes the pretrained weights"),
    "shared state": ({"peft_type": "VERA"}, "PEFT cannot put a VeraConfig on network.blocks.2.linear"),
    "prompts": ({"peft_type": "PROMPT_TUNING"}, "."),
    "no target": (
        {**LORA, "target_modules": ["query"]},
        r"No module of layer group 1 .*Found modules of types .*Linear",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_reach_beyond_its_module_is_refused(what: str) -> None:
    adapter, message = REFUSED[what]
    with pytest.raises(AdapterError, match=message):
        targets(Classifier(4), adapter)


LINEAR = nn.Linear(8, 8)


def draw(name: str, seed: int) -> dict[str, torch.Tensor]:
    config = resolve_adapter(LORA)
    assert config is not None
    return adapter_tensors(inject_adapter(LINEAR, name, config, seed))


def test_a_dict_without_a_type_changes_the_default_adapter() -> None:
    config = resolve_adapter({"r": 4})
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_dropout, config.use_rslora) == (4, 0.1, True)


def test_a_draw_depends_on_its_seed_alone() -> None:
    first = draw("a.b", 1)
    torch.manual_seed(99)
    draw("a.c", 5)
    again, other = draw("a.b", 1), draw("a.b", 2)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["lora_A.s3t.weight"], other["lora_A.s3t.weight"])


def test_a_draw_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draw("a", 1)
    assert torch.equal(torch.rand(1), expected)


def test_the_pretrained_module_is_shared_and_stays_as_it_was() -> None:
    module = nn.Linear(8, 8)
    module.bias.requires_grad_(False)
    before = module.weight.clone()
    config = resolve_adapter(LORA)
    assert config is not None
    layer = inject_adapter(module, "x", config, 0)
    assert layer.get_base_layer() is module
    assert torch.equal(module.weight, before)
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)


def test_a_config_is_copied_and_described_without_defaults() -> None:
    config = peft.LoraConfig(r=4, target_modules=["b", "a"])
    resolved = resolve_adapter(config)
    assert resolved is not config
    described = describe_adapter(resolved)
    assert described == {"peft_type": "LORA", "r": 4, "target_modules": ["a", "b"]}
    assert describe_adapter(resolve_adapter(described)) == described
    assert describe_adapter(None) is None


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(4, 4)
        self.second = nn.GRU(4, 4)
        self.fc = nn.Linear(4, 2)


def test_whole_layers_are_trained_where_the_default_adapter_goes_on_nothing() -> None:
    rows = {row.name: row.trained for row in describe_layers(Recurrent(), slices=2).rows}
    assert (rows["group 1"], rows["group 2"]) == ("whole layers on 1 modules", "whole layers on 1 modules")


def test_an_adapter_that_was_asked_for_has_to_fit() -> None:
    with pytest.raises(AdapterError, match=r"No module of layer group 1 \(second\) fits"):
        describe_layers(Recurrent(), slices=2, adapter=LORA)


def test_the_table_shows_a_modules_own_adapters_as_what_is_trained() -> None:
    module = Classifier()
    lora = peft.LoraConfig(r=3, target_modules=["linear"], modules_to_save=["head"])
    module.network = peft.get_peft_model(module.network, lora)  # type: ignore[assignment,arg-type]
    rows = {row.name: row.trainable for row in describe_layers(module, slices=2).rows}
    assert rows["group 1"] == sum(p.numel() for n, p in module.named_parameters() if "lora_" in n) / 2


def dilated() -> nn.Sequential:
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, dilation=2, padding=2)) for _ in range(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(48, 2))


def test_lora_is_not_put_on_dilated_convolutions_whose_dilation_peft_leaves_out() -> None:
    assert targets(dilated()) == {1: ("1.0",), 2: ("0.0",)}
    with pytest.raises(AdapterError, match=r"on 1\.1 \(Conv2d\): PEFT's LoRA leaves a convolution's dilation out"):
        targets(dilated(), {**LORA, "target_modules": r"\d\.\d"})


def test_an_adapter_that_knows_of_dilation_goes_on_all_convolutions() -> None:
    assert targets(dilated(), {"peft_type": "LOHA", "r": 2})[1] == ("1.0", "1.1")
