"""Freezing: what is trainable, which statistics stand still, and how flags come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_s3t.tuning.fingerprint import fingerprints
from lightning_s3t.tuning.freezing import ModuleFlags, freeze_statistics, set_trainable
from lightning_s3t.tuning.guard import named_tensors


def two() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_exactly_the_chosen_parameters_are_trainable() -> None:
    net = two().requires_grad_(False)
    net[0].bias.requires_grad_(True)
    set_trainable(net, [net[1].weight])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["1.weight"]


def test_parameters_are_chosen_by_identity_not_by_value() -> None:
    net = two()
    net[1].load_state_dict(net[0].state_dict())
    set_trainable(net, net[1].parameters())
    assert not net[0].weight.requires_grad


def test_a_tied_parameter_is_trainable_under_both_names() -> None:
    net = two()
    net[1].weight = net[0].weight
    set_trainable(net, [net[1].weight])
    assert net[0].weight.requires_grad


def test_an_iterator_of_parameters_is_enough() -> None:
    net = two()
    set_trainable(net, iter(list(net[1].parameters())))
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


def test_gradients_of_the_unit_before_are_dropped() -> None:
    net = two()
    net(torch.ones(1, 2)).sum().backward()
    set_trainable(net, net[1].parameters())
    assert all(p.grad is None for p in net.parameters())


def test_a_parameter_of_integers_is_left_frozen() -> None:
    net = two()
    net.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    set_trainable(net, net[1].parameters())
    assert not net.codes.requires_grad


# name: (a layer with running statistics, an input)
STATISTICS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(2), torch.randn(4, 2)),
    "batch 2d": (lambda: nn.BatchNorm2d(2), torch.randn(4, 2, 3, 3)),
    "batch 3d": (lambda: nn.BatchNorm3d(2), torch.randn(4, 2, 3, 3, 3)),
    "lazy batch": (lambda: nn.LazyBatchNorm1d(), torch.randn(4, 2)),
    "instance": (lambda: nn.InstanceNorm1d(2, track_running_stats=True), torch.randn(4, 2, 3)),
    "cumulative": (lambda: nn.BatchNorm1d(2, momentum=None), torch.randn(4, 2)),
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_running_statistics_of_frozen_layers_stand_still(kind: str) -> None:
    make, x = STATISTICS[kind]
    net = nn.Sequential(make())
    net(x)
    freeze_statistics(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(x + 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("kind", STATISTICS)
def test_running_statistics_of_owned_layers_go_on(kind: str) -> None:
    make, x = STATISTICS[kind]
    net = nn.Sequential(make())
    net(x)
    freeze_statistics(net, owned=[net])
    before = net[0].running_mean.clone()
    net(x + 5)
    assert not torch.equal(net[0].running_mean, before)


def test_synchronised_batch_norm_is_frozen_as_well() -> None:
    net = nn.Sequential(nn.SyncBatchNorm(2))
    assert freeze_statistics(net) == [net[0]]
    assert not net[0].training


def test_layers_deep_in_an_owned_module_go_on() -> None:
    net = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))))
    freeze_statistics(net, owned=[net[1]])
    assert (net[0][0].training, net[1][0][0].training) == (False, True)


def test_a_layer_without_running_statistics_keeps_its_mode() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2), nn.LayerNorm(2))
    assert freeze_statistics(net) == []
    assert all(layer.training for layer in net)


def test_dropout_and_containers_keep_their_mode() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    freeze_statistics(net)
    assert (net.training, net[0].training) == (True, True)


def test_a_layer_that_the_user_put_in_eval_mode_is_not_counted() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2))
    assert freeze_statistics(net) == [net[1]]


def test_flags_come_back_one_by_one() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Linear(2, 2))
    net[0].bias.requires_grad_(False)
    flags = ModuleFlags(net)
    trainable, training = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    set_trainable(net, net[2].parameters())
    net.train()
    net[0].eval()
    flags.restore()
    assert [p.requires_grad for p in net.parameters()] == trainable
    assert [m.training for m in net.modules()] == training


def test_gradients_do_not_outlive_the_flags() -> None:
    net = two()
    flags = ModuleFlags(net)
    net(torch.ones(1, 2)).sum().backward()
    flags.restore()
    assert all(p.grad is None for p in net.parameters())


def test_modules_that_came_later_are_left_alone() -> None:
    net = two()
    flags = ModuleFlags(net)
    net.append(nn.Linear(2, 2).eval().requires_grad_(False))
    flags.restore()
    assert not net[2].training
    assert not net[2].weight.requires_grad


@pytest.mark.parametrize("normalise", [torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_frozen_power_iterations_stand_still(normalise: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of some weights the iteration has come to its end, bit for bit
        net = nn.Sequential(normalise(nn.Linear(4, 4)), normalise(nn.Linear(4, 4)))
    before = fingerprints(named_tensors(net))
    freeze_statistics(net, owned=[net[1]])
    net(torch.ones(3, 4))
    changed = {name.split(".")[0] for name, bits in fingerprints(named_tensors(net)).items() if bits != before[name]}
    assert changed == {"1"}
