"""A guard with a baseline compares with what was there before the first unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_s3t.errors import LeakageError
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.guard import Baseline, LeakageGuard
from lightning_s3t.tuning.stage_switch import StageSwitch
from tests.people import Classifier

ADAPTER = {"peft_type": "LORA", "r": 2}


def switch_of(module: nn.Module, adapter: Any = ADAPTER) -> StageSwitch:
    """A switch between two stages of a module, before the first."""
    switch = StageSwitch(module, slices=2, adapter=resolve_adapter(adapter))
    switch.take_baseline()
    return switch


def attached(adapter: Any = ADAPTER) -> StageSwitch:
    module = Classifier()
    module.register_buffer("seen", torch.zeros(2))
    return switch_of(module, adapter)


def run_unit(switch: StageSwitch, stage: int, change: Callable[[nn.Module], object] = lambda _: None) -> None:
    """A unit that only its own tensors and what `change` does are changed in; then its check."""
    trained = {1: switch.enter(1, {}, seed=0).snapshot()} if stage == 2 else {}
    entered = switch.enter(stage, trained, seed=stage)
    watch = switch.watch(entered)
    for parameter in entered.trainable.values():
        parameter.sum().backward()
        parameter.data.add_(1)
    change(switch.builder.root)
    watch.check("unit 1/0")


def root_of(switch: StageSwitch) -> nn.Module:
    return switch.builder.root


@pytest.mark.parametrize("adapter", [ADAPTER, None], ids=["lora", "whole layers"])
def test_units_of_all_stages_in_any_order_pass(adapter: object) -> None:
    switch = attached(adapter)
    for stage in (1, 2, 1, 2, 2, 1):
        run_unit(switch, stage)


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a write": (lambda net: net.get_buffer("seen").add_(1), "seen"),
    "a buffer replaced": (lambda net: setattr(net, "seen", torch.ones(2)), "seen"),
    "a buffer more": (lambda net: net.register_buffer("more", torch.ones(1)), r"more \(new\)"),
    "a buffer less": (lambda net: delattr(net, "seen"), r"seen \(gone\)"),
    "a frozen weight": (
        lambda net: net.get_parameter("network.stem.weight").data.mul_(1.001),
        r"network\.stem\.weight",
    ),
    "what an adapter stands in front of": (
        lambda net: net.get_parameter("network.blocks.3.linear.base_layer.weight").data.mul_(1.001),
        r"network\.blocks\.3\.linear\.base_layer\.weight, network\.blocks\.3\.linear\.weight \(pretrained\)",
    ),
    "its module replaced": (
        lambda net: setattr(net.get_submodule("network.blocks.3.linear"), "base_layer", nn.Linear(16, 16)),
        r"network\.blocks\.3\.linear\.base_layer\.bias",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_within_a_unit_is_named(change: str) -> None:
    apply, message = CHANGES[change]
    with pytest.raises(LeakageError, match=f"While unit 1/0 was trained, .* changed: {message}"):
        run_unit(attached(), 1, apply)


BETWEEN = ["a write", "a buffer replaced", "a buffer more", "a buffer less", "a frozen weight"]


@pytest.mark.parametrize("change", BETWEEN)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_change_between_two_units_is_named_too(change: str, stage: int) -> None:
    apply, message = CHANGES[change]
    switch = attached()
    run_unit(switch, 1)
    apply(root_of(switch))
    with pytest.raises(LeakageError, match=message):
        run_unit(switch, stage)


@pytest.mark.parametrize("name", ["network.blocks.3.linear", "network.blocks.0.linear", "network.head"])
def test_an_original_that_changed_between_two_units_is_named(name: str) -> None:
    switch = attached()
    run_unit(switch, 2)
    switch.leave()
    root_of(switch).get_submodule(name).get_parameter("weight").data.add_(1)
    with pytest.raises(LeakageError, match=f"{name}.weight".replace(".", r"\.") + r" \(pretrained\)"):
        run_unit(switch, 1)


def test_what_an_earlier_unit_wrote_before_it_was_broken_off_is_named() -> None:
    switch = attached()
    switch.watch(switch.enter(1, {}, seed=0))
    root_of(switch).get_buffer("seen").add_(1)  # revoked: no check
    with pytest.raises(LeakageError, match="seen"):
        run_unit(switch, 1)


def test_a_frozen_adapter_of_an_earlier_stage_is_watched() -> None:
    def change(net: nn.Module) -> None:
        net.get_parameter("network.blocks.3.linear.lora_B.s3t.weight").data.add_(1)

    with pytest.raises(LeakageError, match=r"changed: network\.blocks\.3\.linear\.lora_B\.s3t\.weight\."):
        run_unit(attached(), 2, change)


def test_an_owned_weight_under_the_name_of_a_frozen_one_is_named() -> None:
    def share(net: nn.Module) -> None:
        net.get_submodule("network.stem").bias = net.get_submodule("network.head").bias  # type: ignore[assignment]

    switch = attached()
    stage = switch.enter(1, {}, seed=0)
    share(root_of(switch))
    watch = switch.watch(stage)
    with pytest.raises(LeakageError, match=r"network\.stem\.bias \(gone\)"):
        watch.check("it")


def test_modules_that_are_registered_twice_pass() -> None:
    switch = attached()
    root = root_of(switch)
    root.add_module("alias", root.get_submodule("network"))
    again = switch_of(root)
    for stage in (1, 2, 1):
        run_unit(again, stage)


def test_another_switch_has_a_baseline_of_its_own() -> None:
    switch = attached()
    run_unit(switch, 1)
    switch.leave()
    root = root_of(switch)
    root.get_buffer("seen").add_(1)
    run_unit(switch_of(root), 1)


def test_what_a_script_prepares_before_the_baseline_is_in_it() -> None:
    switch = attached()
    root_of(switch).get_buffer("seen").add_(1)
    switch.take_baseline()
    run_unit(switch, 1)


def test_what_was_owned_may_differ_from_the_baseline() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    baseline = Baseline(net)
    net[1].weight.data.add_(1)
    LeakageGuard(net, ["1.weight"], baseline=baseline).check("it")
    with pytest.raises(LeakageError, match=r"1\.weight"):
        LeakageGuard(net, ["1.bias"], baseline=baseline).check("it")
