"""The guard sees every way in which a tensor that is not owned can carry something over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_s3t.errors import LeakageError
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.freezing import freeze_statistics, set_trainable
from lightning_s3t.tuning.guard import LeakageGuard, named_tensors
from lightning_s3t.tuning.stages import Stage
from lightning_s3t.tuning.swap import ModuleSwap
from tests.people import Classifier

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A frozen part with a buffer of each kind, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("unset", None)


OWNED = ("head.weight", "head.bias")


def assign(name: str, value: torch.Tensor) -> Callable[[Net], None]:
    return lambda net: setattr(net, name, value)


def write(name: str, value: float) -> Callable[[Net], None]:
    return lambda net: net.get_buffer(name).fill_(value)  # type: ignore[return-value]


CHANGES: dict[str, tuple[Callable[[Net], object], str]] = {
    "a write": (write("seen", 1.0), "seen"),
    "a write of -0.0": (write("count", -0.0), "count"),
    "a write of NaN": (write("seen", float("nan")), "seen"),
    "other values": (assign("seen", torch.ones(2)), "seen"),
    "another length": (assign("seen", torch.zeros(5)), "seen"),
    "nothing left": (assign("seen", torch.zeros(0)), "seen"),
    "another shape": (assign("seen", torch.zeros(2, 1)), "seen"),
    "another dtype": (assign("seen", torch.zeros(2, dtype=torch.int32)), "seen"),
    "a buffer that was None": (assign("unset", torch.zeros(1)), r"unset \(new\)"),
    "a buffer that is None now": (lambda net: setattr(net, "seen", None), r"seen \(gone\)"),
    "a new parameter": (
        lambda net: net.body.register_parameter("scale", nn.Parameter(torch.ones(1))),
        r"body\.scale \(new\)",
    ),
    "a new module": (lambda net: net.add_module("more", nn.Linear(1, 1, bias=False)), r"more\.weight \(new\)"),
    "a weight made a buffer": (
        lambda net: (delattr(net.body, "bias"), net.body.register_buffer("bias2", torch.zeros(1))),
        r"body\.bias \(gone\), body\.bias2 \(new\)",
    ),
    "a flipped sign": (lambda net: net.body.weight.data.neg_(), r"body\.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_outside_of_what_is_owned_is_named(change: str) -> None:
    apply, message = CHANGES[change]
    net = Net()
    guard = LeakageGuard(net, OWNED)
    apply(net)
    with pytest.raises(
        LeakageError, match=f"While unit 3 was trained, what it does not own changed: {message}. Its data"
    ):
        guard.check("unit 3")


def test_a_whole_tensor_of_double_precision_with_its_sign_turned_is_named() -> None:
    net = Net().double()
    guard = LeakageGuard(net, OWNED)
    net.body.weight.data.neg_()
    with pytest.raises(LeakageError, match=r"body\.weight"):
        guard.check("it")


def test_all_changes_are_named_at_once_in_order() -> None:
    net = Net()
    guard = LeakageGuard(net, OWNED)
    net.seen += 1
    net.body.weight.data += 1
    with pytest.raises(LeakageError, match=r"changed: body\.weight, seen\."):
        guard.check("it")


def test_nothing_changed_is_no_leak_and_can_be_checked_again() -> None:
    net = Net()
    guard = LeakageGuard(net, OWNED)
    guard.check("it")
    net.seen += 1
    with pytest.raises(LeakageError):
        guard.check("it")
    net.seen -= 1
    guard.check("it")


def test_a_tensor_replaced_by_an_equal_one_is_no_leak() -> None:
    net = Net()
    guard = LeakageGuard(net, OWNED)
    net.seen = torch.zeros(2)
    net.body.weight = nn.Parameter(net.body.weight.detach().clone())
    guard.check("it")


def test_gradients_and_flags_are_no_leak() -> None:
    net = Net()
    guard = LeakageGuard(net, OWNED)
    net.body(torch.ones(1, 2)).sum().backward()
    net.eval().requires_grad_(False)
    guard.check("it")


def test_owning_one_tensor_does_not_cover_another_whose_name_begins_alike() -> None:
    net = nn.ModuleDict({"head": nn.Linear(1, 1, bias=False), "head2": nn.Linear(1, 1, bias=False)})
    guard = LeakageGuard(net, ["head.weight"])
    net["head2"].weight.data += 1
    with pytest.raises(LeakageError, match=r"head2\.weight"):
        guard.check("it")


def test_a_write_through_a_tied_weight_is_named_under_its_other_name() -> None:
    net = Net()
    net.tied = nn.Linear(2, 2, bias=False)
    net.tied.weight = net.body.weight
    guard = LeakageGuard(net, OWNED)
    net.tied.weight.data += 1
    with pytest.raises(LeakageError, match=r"body\.weight, tied\.weight"):
        guard.check("it")


def test_originals_are_told_from_what_stands_in_for_them() -> None:
    net, original = Net(), nn.Linear(2, 2)
    guard = LeakageGuard(net, OWNED, {"head": original})
    net.head.weight.data += 1
    guard.check("it")
    original.bias.data += 1
    with pytest.raises(LeakageError, match=r"changed: head\.bias \(pretrained\)\."):
        guard.check("it")


def test_buffers_of_all_kinds_are_named() -> None:
    assert set(named_tensors(Net())) == {"body.weight", "body.bias", *OWNED, "seen", "count"}


def stage_of(module: nn.Module, adapter: object) -> tuple[Stage, LeakageGuard]:
    builder = StageBuilder(module, find_layers(module, 4), resolve_adapter(adapter))  # type: ignore[arg-type]
    stage = Stage(builder, ModuleSwap(module, builder.originals), 1, {}, seed=0)
    set_trainable(module, stage.trainable.values())
    return stage, LeakageGuard(module, stage.owned_names(), builder.originals)


@pytest.mark.parametrize("adapter", [{"peft_type": "LORA", "r": 2}, None], ids=["lora", "whole layers"])
def test_a_stage_that_trains_its_own_tensors_passes(adapter: object) -> None:
    module = Classifier(4)
    stage, guard = stage_of(module, adapter)
    module.train()
    freeze_statistics(module, stage.owned.values())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    module(X).square().mean().backward()
    optimizer.step()
    guard.check("unit 0/0")


def test_a_stage_in_which_statistics_run_on_is_caught() -> None:
    module = Classifier(4)
    _, guard = stage_of(module, {"peft_type": "LORA", "r": 2})
    module.train()(X)
    with pytest.raises(LeakageError, match=r"network\.blocks\.0\.norm\.num_batches_tracked"):
        guard.check("unit 0/0")


def test_the_power_iteration_of_a_frozen_spectral_norm_stands_still() -> None:
    module = Classifier(4)
    nn.utils.parametrizations.spectral_norm(module.network.stem)
    stage, guard = stage_of(module, {"peft_type": "LORA", "r": 2})
    module.train()
    freeze_statistics(module, stage.owned.values())
    module(X)
    guard.check("unit 0/0")
