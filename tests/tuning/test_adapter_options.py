"""PEFT's options are honoured or refused, and adapters act where and as they say."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from lightning_s3t.errors import AdapterError
from lightning_s3t.tuning import find_layers
from lightning_s3t.tuning.adapters import (
    adapter_tensors,
    check_adapter,
    find_targets,
    inject_adapter,
    resolve_adapter,
)
from lightning_s3t.tuning.stages import StageBuilder

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "random lora": {**LORA, "init_lora_weights": False},
    "gaussian lora": {**LORA, "init_lora_weights": "gaussian"},
    "ia3": {"peft_type": "IA3"},
    "loha": {"peft_type": "LOHA", "r": 2},
}


def config_of(adapter: Any) -> peft.PeftConfig:
    config = resolve_adapter(adapter)
    assert config is not None
    return config


def vit(depth: int = 2) -> nn.Module:
    return timm.create_model("test_vit", depth=depth, num_classes=3)


def targets_of(model: nn.Module, adapter: Any, slices: int = 2) -> dict[int, tuple[str, ...]]:
    config = config_of(adapter)
    found = find_targets(model, find_layers(model, slices), config)
    check_adapter(model, found, config)
    return found


def built(model: nn.Module, adapter: Any, seed: int, stage: int = 2) -> dict[str, nn.Module]:
    return StageBuilder(model, find_layers(model, 2), config_of(adapter)).build(stage, {}, seed)


def drawn(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{relative}": tensor
        for name, module in modules.items()
        if hasattr(module, "get_base_layer")
        for relative, tensor in adapter_tensors(module).items()  # type: ignore[arg-type]
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("modules_to_save", ["head"]),
        ("target_parameters", ["blocks.0.attn.qkv.weight"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [(0, 2), (1, 2)]),
    ],
)
def test_options_that_train_outside_the_targets_are_refused(option: str, value: Any) -> None:
    with pytest.raises(AdapterError, match=rf"The adapter sets {option}=.*no unit could own them\. Leave it out"):
        resolve_adapter(peft.LoraConfig(target_modules=["qkv"], **{option: value}))


@pytest.mark.parametrize("adapter", ["LORA", 4, ["LORA"], nn.Linear(1, 1)])
def test_what_is_no_adapter_is_refused_by_its_type(adapter: Any) -> None:
    with pytest.raises(AdapterError, match=f"a PeftConfig, a dict of one or None but got {type(adapter).__name__}"):
        resolve_adapter(adapter)


@pytest.mark.parametrize("kind", ["LORA", "lora", peft.PeftType.LORA])
def test_a_type_may_be_written_in_any_way(kind: Any) -> None:
    assert isinstance(resolve_adapter({"peft_type": kind, "r": 3}), peft.LoraConfig)


def test_a_config_that_was_saved_for_inference_can_be_trained() -> None:
    given = peft.LoraConfig(r=2, inference_mode=True)
    assert config_of(given).inference_mode is False
    assert given.inference_mode is True


def test_a_dict_is_left_as_it_was() -> None:
    given = {"peft_type": "LORA", "r": 2}
    resolve_adapter(given)
    assert given == {"peft_type": "LORA", "r": 2}


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_training_pretrained_biases_is_refused(bias: str) -> None:
    with pytest.raises(AdapterError, match=r"trains pretrained parameters of .*: bias\. .* Set bias='none'"):
        targets_of(vit(), {**LORA, "bias": bias})


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_initialisations_that_change_pretrained_weights_are_refused(init: str) -> None:
    model = vit()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=r"changes the pretrained weights of blocks\.1\.attn\.qkv"):
        targets_of(model, {**LORA, "init_lora_weights": init})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_adapters_that_share_state_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"PEFT cannot put a VeraConfig on blocks\.1\.attn\.qkv \(Linear\)"):
        targets_of(vit(), {"peft_type": "VERA"})


def test_excluded_modules_get_no_adapter_with_named_targets() -> None:
    found = targets_of(vit(), {**LORA, "target_modules": ["fc1", "fc2"], "exclude_modules": ["fc2"]})
    assert found == {1: ("blocks.1.mlp.fc1",), 2: ("blocks.0.mlp.fc1",)}


def test_excluded_modules_get_no_adapter_with_default_targets() -> None:
    found = targets_of(vit(), {**LORA, "exclude_modules": ["fc2", "proj"]})
    assert found[1] == ("blocks.1.attn.qkv", "blocks.1.mlp.fc1")


def test_excluded_modules_get_no_adapter_with_all_linear() -> None:
    found = targets_of(vit(), {**LORA, "target_modules": "all-linear", "exclude_modules": ["fc2", "proj"]})
    assert found[1] == ("blocks.1.attn.qkv", "blocks.1.mlp.fc1")


def test_groups_without_the_chosen_layers_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"No module of layer group 1 \(blocks\.1"):
        targets_of(vit(), {**LORA, "target_modules": ["qkv"], "layers_to_transform": [0]})


def test_the_chosen_layers_count_with_default_targets_too() -> None:
    with pytest.raises(AdapterError):
        targets_of(vit(), {**LORA, "layers_to_transform": [0]})


def test_a_rank_by_name_is_that_modules_alone() -> None:
    model = vit(12)
    config = config_of({**LORA, "target_modules": ["qkv"], "rank_pattern": {"blocks.1.attn.qkv": 4}})
    names = [f"blocks.{block}.attn.qkv" for block in range(12)]
    ranks = [inject_adapter(model.get_submodule(name), name, config, 0).r["s3t"] for name in names]
    assert ranks == [2, 4, *[2] * 10]


def test_torchs_attention_in_torchvision_models_is_passed_over() -> None:
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3)
    names = {name.rsplit(".", 1)[0] for names in targets_of(model, LORA).values() for name in names}
    assert all(name.endswith(".mlp") for name in names)


def test_grouped_convolutions_get_none() -> None:
    net = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 1)) for _ in range(2)])
    net.append(nn.Linear(4, 2))
    assert targets_of(net, LORA) == {1: ("1.1",), 2: ("0.1",)}


def test_a_block_that_is_itself_linear_gets_one() -> None:
    assert targets_of(nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)]), LORA) == {1: ("1",), 2: ("0",)}


def test_layernorm_tuning_takes_layernorms_alone() -> None:
    net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)], nn.Linear(4, 2))
    assert targets_of(net, {"peft_type": "LN_TUNING"}) == {1: ("1.1",), 2: ("0.1",)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_follows_from_seed_and_name(kind: str) -> None:
    model = vit()
    first = drawn(built(model, KINDS[kind], seed=1))
    torch.manual_seed(99)
    torch.rand(7)
    again = drawn(built(copy.deepcopy(model), KINDS[kind], seed=1))
    assert list(again) == list(first)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_does_not_depend_on_what_else_is_injected(kind: str) -> None:
    model = vit()
    alone, among = drawn(built(model, KINDS[kind], 1, stage=1)), drawn(built(model, KINDS[kind], 1, stage=2))
    assert 0 < len(alone) < len(among)
    assert all(torch.equal(tensor, among[name]) for name, tensor in alone.items())


def test_two_names_and_two_seeds_draw_differently() -> None:
    model = vit()
    first, other = drawn(built(model, LORA, seed=1)), drawn(built(model, LORA, seed=2))
    downs = [tensor for name, tensor in [*first.items(), *other.items()] if name.endswith("qkv.lora_A.s3t.weight")]
    assert len({tensor.detach().numpy().tobytes() for tensor in downs}) == 4


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "gaussian lora", "loha"])
def test_fresh_adapters_leave_the_answer_as_it_was(kind: str) -> None:
    original = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    torch.testing.assert_close(inject_adapter(original, "a", config_of(KINDS[kind]), 0)(x), original(x))


def test_lora_on_a_linear_layer_adds_the_product_of_its_matrices() -> None:
    original, x = nn.Linear(8, 6), torch.randn(3, 8)
    layer = inject_adapter(original, "a", config_of({**KINDS["random lora"], "lora_alpha": 4}), 0)
    own = adapter_tensors(layer)
    expected = original(x) + 4 / 2 * x @ own["lora_A.s3t.weight"].T @ own["lora_B.s3t.weight"].T
    torch.testing.assert_close(layer(x), expected)


def test_lora_on_a_transposed_linear_layer_adds_the_product_of_its_matrices() -> None:
    original, x = transformers.pytorch_utils.Conv1D(6, 8), torch.randn(3, 8)
    layer = inject_adapter(original, "a", config_of({**KINDS["random lora"], "lora_alpha": 2}), 0)
    own = adapter_tensors(layer)
    torch.testing.assert_close(layer(x), original(x) + x @ own["lora_A.s3t.weight"].T @ own["lora_B.s3t.weight"].T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_pretrained_layer_keeps_its_dtype_under_an_adapter(dtype: torch.dtype) -> None:
    original = nn.Linear(8, 8, dtype=dtype)
    layer = inject_adapter(original, "a", config_of(LORA), 0)
    assert original.weight.dtype == dtype
    assert layer(torch.ones(1, 8, dtype=dtype)).dtype == dtype


def test_only_the_adapters_own_tensors_are_called_its_own() -> None:
    layer = inject_adapter(nn.Linear(8, 8), "a", config_of({**LORA, "use_dora": True}), 0)
    assert sorted(adapter_tensors(layer)) == [
        "lora_A.s3t.weight",
        "lora_B.s3t.weight",
        "lora_magnitude_vector.s3t.weight",
    ]


def test_a_layer_that_peft_does_not_know_is_refused_by_name_and_type() -> None:
    with pytest.raises(AdapterError, match=r"PEFT cannot put a LoraConfig on blocks\.0 \(Bilinear\): .* Choose other"):
        inject_adapter(nn.Bilinear(2, 2, 2), "blocks.0", config_of(LORA), 0)


def test_a_refused_injection_leaves_the_flags_as_they_were() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with pytest.raises(AdapterError):
        inject_adapter(module, "a", config_of({**LORA, "bias": "all"}), 0)
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)
