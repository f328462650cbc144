"""The successors of SSD against their formulas, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods import ASSD, LFSSD, SSD, EditSession
from tests.methods.sessions import Mlp, make_rows, make_session, same_bits, state


def session(net: nn.Module, forget: Tensor, retain: Tensor) -> EditSession:
    return make_session(net, forget, retain, lambda batch: net(batch).square().mean())


def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4) * torch.tensor([5.0, 1.0, 1.0, 1.0]), torch.randn(20, 4)


def test_assd_is_ssd_at_a_percentile_of_the_quotients() -> None:
    forget, retain = rows()
    net, other = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    other.load_state_dict(net.state_dict())
    weight = net.weight.detach()
    of_forgotten, of_all = (
        torch.stack([(2 * (weight @ x) * x).square() for x in part]).mean(0)
        for part in (forget, torch.cat([forget, retain]))
    )
    alpha = np.percentile((of_forgotten / of_all).double().numpy(), 100 - math.log(1 + 100 * 3 / 23))
    report = ASSD().edit(session(net, forget, retain))
    assert report["alpha"] == pytest.approx(alpha)
    assert report["changed_share"] == 0.25  # of four weights the one above
    SSD(alpha=report["alpha"]).edit(session(other, forget, retain))
    assert torch.equal(net.weight, other.weight)


def test_assd_changes_a_share_that_follows_from_the_number_of_rows_alone() -> None:
    net = Mlp()
    report = ASSD().edit(make_session(net, make_rows(2, 1), make_rows(198, 2)))
    assert report["changed_share"] == pytest.approx(math.log(2) / 100, abs=1 / 60)


def test_where_no_weight_matters_assd_changes_nothing() -> None:
    net = Mlp()
    before = state(net)
    report = ASSD().edit(make_session(net, make_rows(2, 1), make_rows(9, 2), lambda batch: net(batch[0]).sum() * 0.0))
    assert same_bits(before, state(net))
    assert report == {"changed_share": 0.0, "alpha": math.inf}


def test_lfssd_takes_the_size_of_the_gradient_of_the_answers_norm() -> None:
    forget, retain = rows()
    forget[:, 1:] /= 4
    net = nn.Linear(4, 1, bias=False)
    before = net.weight.detach().clone()
    of_forgotten, of_all = (
        torch.stack([(2 * (before @ x) * x).abs() for x in part]).mean(0)
        for part in (forget, torch.cat([forget, retain]))
    )
    selected = of_forgotten > 1.2 * of_all
    assert selected.any()
    assert not selected.all()
    LFSSD(alpha=1.2, lam=0.5).edit(session(net, forget, retain))
    expected = torch.where(selected, before * (0.5 * of_all / of_forgotten).clamp(max=1.0), before)
    torch.testing.assert_close(net.weight.detach(), expected)


def test_lfssd_does_not_look_at_labels() -> None:
    results = []
    for shift in (0, 1):
        net, (features, labels) = Mlp(), make_rows(5, 1)
        LFSSD(alpha=1.1).edit(make_session(net, (features, (labels + shift) % 4), make_rows(20, 2)))
        results.append(state(net))
    assert same_bits(*results)
    assert not same_bits(results[0], state(Mlp()))


def test_lfssd_with_alpha_infinite_changes_nothing() -> None:
    net = Mlp()
    LFSSD(alpha=math.inf).edit(make_session(net, make_rows(5, 1), make_rows(20, 2)))
    assert same_bits(state(net), state(Mlp()))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(ASSD, {"batch_size": 0}), (LFSSD, {"alpha": 0}), (LFSSD, {"lam": -1}), (LFSSD, {"batch_size": 0})],
)
def test_arguments_out_of_range_are_refused(kind: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        kind(**arguments)
