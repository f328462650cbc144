"""Influence: the second order is exact removal where the loss is quadratic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods import EditSession, Influence
from lightning_s3t.methods.influence import solve
from tests.methods.sessions import make_rows, make_session, same_bits, state

WIDTH = 5


def problem(l2: float) -> tuple[nn.Linear, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A ridge regression at its minimum over all rows, and both sets of rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randn(40, generator=generator, dtype=torch.float64)
    net = nn.Linear(WIDTH, 1, bias=False).double()
    net.weight.data[:] = ridge(x, y, l2)
    return net, (x[:7], y[:7]), (x[7:], y[7:])


def ridge(x: Tensor, y: Tensor, l2: float) -> Tensor:
    """The minimum of the mean of (w x - y)^2 plus l2 / 2 times the squared norm."""
    return torch.linalg.solve(2 * x.T @ x + l2 * len(x) * torch.eye(WIDTH, dtype=x.dtype), 2 * x.T @ y)


def session(net: nn.Module, forget: Any, retain: Any) -> EditSession:
    return make_session(net, forget, retain, lambda batch: (net(batch[0]).squeeze(-1) - batch[1]).square().mean())


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_of_a_quadratic_loss_the_second_order_is_a_training_without_the_rows(l2: float, batch_size: int) -> None:
    net, forget, retain = problem(l2)
    report = Influence(l2=l2, batch_size=batch_size, tolerance=1e-12).edit(session(net, forget, retain))
    expected = ridge(*retain, l2).unsqueeze(0)
    torch.testing.assert_close(net.weight.detach(), expected, rtol=1e-9, atol=1e-10)
    assert report["iterations"] <= WIDTH + 1
    assert not report["negative_curvature"]


def test_requests_add_up_to_a_training_without_all_of_them() -> None:
    net, forget, retain = problem(0.3)
    first, second = (forget[0][:3], forget[1][:3]), (forget[0][3:], forget[1][3:])
    rest = torch.cat([second[0], retain[0]]), torch.cat([second[1], retain[1]])
    for gone, stays in ((first, rest), (second, retain)):
        Influence(l2=0.3, tolerance=1e-12).edit(session(net, gone, stays))
    torch.testing.assert_close(net.weight.detach(), ridge(*retain, 0.3).unsqueeze(0), rtol=1e-9, atol=1e-10)


def test_the_first_order_adds_the_sum_of_the_gradients() -> None:
    net, forget, retain = problem(0.3)
    start = net.weight.detach().clone()
    gradient = 2 * (start @ forget[0].T - forget[1]) @ forget[0] + 7 * 0.3 * start
    Influence(order="first", rate=0.01, l2=0.3, batch_size=3).edit(session(net, forget, retain))
    torch.testing.assert_close(net.weight.detach(), start + 0.01 * gradient)


def test_of_a_convex_loss_the_second_order_comes_near_to_a_training_without_the_rows() -> None:
    forget, retain = ((x.double(), y) for x, y in (make_rows(6, seed=1), make_rows(60, seed=2)))

    def fitted(x: Tensor, y: Tensor) -> nn.Linear:
        net = nn.Linear(6, 4).double()
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        optimizer = torch.optim.LBFGS(
            net.parameters(), max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss = loss + 0.05 / 2 * sum(parameter.square().sum() for parameter in net.parameters())
            loss.backward()
            return loss

        optimizer.step(closure)
        return net

    net = fitted(torch.cat([forget[0], retain[0]]), torch.cat([forget[1], retain[1]]))
    scratch = fitted(*retain)
    before = (net.weight - scratch.weight).norm().item()
    Influence(l2=0.05).edit(make_session(net, forget, retain))
    assert (net.weight - scratch.weight).norm().item() < before / 10


def test_negative_curvature_ends_the_solution_and_is_reported() -> None:
    found = solve(torch.diag(torch.tensor([5.0, -1.0])).mv, torch.tensor([1.0, 0.5]), iterations=9, tolerance=1e-6)
    assert (found.iterations, found.negative) == (1, True)
    assert found.describe() == {"iterations": 1, "residual": found.residual, "negative_curvature": True}


def test_where_the_curvature_along_the_gradient_is_negative_it_is_refused_without_damping() -> None:
    net = nn.Linear(1, 1, bias=False)
    rows = torch.ones(3, 1)
    before = state(net)
    with pytest.raises(ConfigurationError, match="Set `damping`"):
        Influence().edit(make_session(net, rows, rows, lambda batch: -net(batch).square().mean()))
    assert same_bits(before, state(net))
    damped = Influence(damping=3.0).edit(make_session(net, rows, rows, lambda batch: -net(batch).square().mean()))
    assert not damped["negative_curvature"]


def test_the_last_tensors_alone_are_changed() -> None:
    net = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4))
    before = state(net)
    Influence(last_tensors=2, damping=0.1).edit(make_session(net, make_rows(3, 1), make_rows(20, 2)))
    after = state(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2.weight", "2.bias"}


class Attention(nn.Module):
    """A network with torch's fused attention, whose fast forms cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(1, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        each = self.inner(x.unsqueeze(-1)).unsqueeze(1)
        return self.head(nn.functional.scaled_dot_product_attention(each, each, each).squeeze(1).mean(1))


def test_attention_is_differentiated_twice() -> None:
    net = Attention()
    before = state(net)
    Influence(damping=1.0, iterations=2).edit(make_session(net, make_rows(3, 1), make_rows(20, 2)))
    assert not same_bits(before, state(net))


def test_where_the_forgotten_rows_have_no_gradient_nothing_changes() -> None:
    net = nn.Linear(2, 1, bias=False)
    before = state(net)
    Influence().edit(make_session(net, torch.zeros(3, 2), torch.ones(4, 2), lambda batch: net(batch).square().mean()))
    assert same_bits(before, state(net))


def test_conjugate_gradients_solve_a_system() -> None:
    root = torch.randn(8, 8, dtype=torch.float64)
    matrix, right = root @ root.T + torch.eye(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    found = solve(matrix.mv, right, iterations=50, tolerance=1e-10)
    torch.testing.assert_close(matrix @ found.value, right, rtol=1e-7, atol=1e-7)
    assert found.residual <= 1e-10
    assert solve(matrix.mv, right, iterations=1, tolerance=1e-10).iterations == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"order": "third"},
        {"rate": 0},
        {"l2": -1},
        {"damping": -1},
        {"steps": 0},
        {"batch_size": None},
        {"iterations": 0},
        {"tolerance": 0},
        {"last_tensors": 0},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Influence(**arguments)
