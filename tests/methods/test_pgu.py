"""PGU: its steps leave the space of what the rows that stay give each layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods import PGU, EditSession
from lightning_s3t.methods.pgu import leading_directions, project_off
from tests.methods.sessions import FEATURES, Mlp, make_rows, make_session, same_bits, state

FORGET = make_rows(5, seed=1)


def few_directions(count: int) -> tuple[Tensor, Tensor]:
    """Rows that lie in three of the six dimensions, around zero."""
    features, labels = make_rows(count, seed=2)
    features[:, 3:] = 0.0
    return features, labels


def test_a_step_is_orthogonal_to_every_input_of_the_rows_that_stay() -> None:
    net, retain = Mlp(), few_directions(20)
    before = state(net)
    answers = net[0](retain[0]).detach()
    of_forgotten = net[0](FORGET[0]).detach()
    PGU(share=1.0, epochs=3, learning_rate=0.5).edit(make_session(net, FORGET, retain))
    change = net[0].weight - before["0.weight"]
    assert change.abs().max() > 1e-3
    assert (retain[0] @ change.T).abs().max() < 1e-6
    torch.testing.assert_close(net[0](retain[0]), answers)
    assert (net[0](FORGET[0]) - of_forgotten).abs().max() > 1e-2
    assert torch.equal(net[0].bias, before["0.bias"])


def test_where_every_direction_is_used_nothing_moves() -> None:
    net, retain = nn.Linear(FEATURES, 4), make_rows(50, seed=2)
    before = state(net)
    PGU(share=1.0, epochs=3, learning_rate=0.5).edit(make_session(net, FORGET, retain))
    torch.testing.assert_close(net.weight, before["weight"], rtol=0, atol=1e-6)


def test_a_step_is_the_papers_loss_and_projection_by_hand() -> None:
    net, retain = nn.Linear(FEATURES, 4).double(), make_rows(30, seed=2)
    forget, retain = (FORGET[0].double(), FORGET[1]), (retain[0].double(), retain[1])
    start = net.weight.detach().clone()
    p = net(forget[0]).softmax(-1)
    of_label = p[range(5), forget[1]]
    loss = (-(1 - of_label + 0.05).log()).mean() - 0.2 * (-(p * p.log()).sum(-1)).mean()
    (gradient,) = torch.autograd.grad(loss, [net.weight])
    _, singular, directions = torch.linalg.svd(retain[0])
    kept = directions[: int((singular.cumsum(0) / singular.sum() <= 0.6).sum())]
    expected = start - 0.01 * (gradient - gradient @ kept.T @ kept)
    report = PGU(share=0.6, epochs=1).edit(make_session(net, forget, retain))
    torch.testing.assert_close(net.weight.detach(), expected)
    assert report == {"epochs": 1, "preserved_directions": {"weight": [len(kept), FEATURES]}}
    assert 0 < len(kept) < FEATURES


class Pooled(nn.Module):
    """A convolution, whose places are averaged."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": 1, "stride": 2},
        {"groups": 2},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 0), "padding_mode": "circular"},
    ],
    ids=repr,
)
def test_a_convolution_answers_the_rows_that_stay_as_before(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Pooled(nn.Conv2d(4, 4, 3, **arguments))
    channels = torch.randn(6, 2) @ torch.randn(2, 4)  # two directions of the four, the same at all places
    retain = channels[:, :, None, None].expand(6, 4, 7, 7), torch.zeros(6, dtype=torch.long)
    forget = torch.randn(3, 4, 7, 7), torch.tensor([0, 1, 2])
    answers, of_forgotten = net.layer(retain[0]).detach(), net.layer(forget[0]).detach()
    PGU(share=1.0, epochs=3, learning_rate=1.0).edit(make_session(net, forget, retain))
    torch.testing.assert_close(net.layer(retain[0]), answers, rtol=1e-4, atol=1e-5)
    assert (net.layer(forget[0]) - of_forgotten).abs().max() > 1e-3


def test_it_looks_first_and_leaves_a_model_that_is_below_the_accuracy() -> None:
    net, retain = Mlp(), few_directions(20)
    before = state(net)
    labels = (net(FORGET[0]).argmax(-1) + 1) % 4
    assert PGU(stop_accuracy=0.1).edit(make_session(net, (FORGET[0], labels), retain))["epochs"] == 0
    assert same_bits(state(net), before)


@pytest.mark.parametrize("stop_accuracy", [0.3, 0.5, 0.7, 0.9])
def test_it_keeps_the_nearer_of_the_last_two_models(stop_accuracy: float) -> None:
    retain, start = few_directions(20), Mlp()
    rows = make_rows(10, seed=1)[0]
    labels = start(rows).argmax(-1)

    def edited(epochs: int, stop: float | None = None) -> tuple[nn.Module, int]:
        net, method = copy.deepcopy(start), PGU(0.5, epochs, 1.0, 1.0, stop_accuracy=stop)
        return net, int(method.edit(make_session(net, (rows, labels), retain))["epochs"])

    models = [start, *(edited(epochs)[0] for epochs in range(1, 20))]
    distances = [float((net(rows).argmax(-1) == labels).float().mean()) - stop_accuracy for net in models]
    last = next(epochs for epochs, distance in enumerate(distances) if distance < 0)
    nearer = last - 1 if distances[last - 1] < -distances[last] else last
    net, epochs = edited(20, stop_accuracy)
    assert epochs == nearer
    assert same_bits(state(net), state(models[nearer]))


def test_layers_whose_inputs_are_not_known_are_refused() -> None:
    net = nn.Bilinear(FEATURES, FEATURES, 4)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0], batch[0]), batch[1])

    with pytest.raises(UnsupportedError, match="linear and two-dimensional convolutional"):
        PGU().edit(make_session(net, FORGET, make_rows(9, 2), loss))

    class Around(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    inner = Around(FEATURES, 4)
    net = nn.Sequential(inner)  # type: ignore[assignment]
    session: EditSession = make_session(
        net, FORGET, make_rows(9, 2), lambda batch: F.cross_entropy(inner.forward(batch[0]), batch[1])
    )
    with pytest.raises(UnsupportedError, match=r"inputs of 0\.weight"):
        PGU().edit(session)


def test_directions_are_orthonormal_and_projected_off() -> None:
    rows = torch.randn(30, 5, dtype=torch.float64)
    basis = leading_directions(rows.T @ rows, share=0.7)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    rest = project_off(torch.randn(3, 5, dtype=torch.float64), basis)
    torch.testing.assert_close(rest @ basis, torch.zeros(3, basis.shape[1], dtype=torch.float64))


@pytest.mark.parametrize(
    "arguments",
    [
        {"share": 0.0},
        {"epochs": 0},
        {"learning_rate": "1"},
        {"last_learning_rate": 0},
        {"batch_size": -1},
        {"offset": 0.0},
        {"entropy_weight": -1},
        {"stop_accuracy": 1.5},
        {"labels": []},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        PGU(**arguments)
