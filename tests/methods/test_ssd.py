"""SSD against its formula, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods import SSD, EditSession
from lightning_s3t.store import Store
from tests.methods.sessions import make_session
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of


def session(net: nn.Module, forget: Tensor, retain: Tensor) -> EditSession:
    return make_session(net, forget, retain, lambda batch: net(batch).square().mean())


def importance(net: nn.Module, rows: Tensor) -> Tensor:
    """The mean over rows of the squared gradient of the weight, by hand: d/dw (w x)^2 = 2 (w x) x."""
    weight = net.weight.detach()
    return torch.stack([(2 * (weight @ x) * x).square() for x in rows]).mean(0).reshape(1, -1)


def test_it_is_the_papers_formula_on_a_network_of_one_layer() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False)
    forget, retain = torch.randn(3, 4) * torch.tensor([5.0, 1.0, 1.0, 1.0]), torch.randn(20, 4)
    before = net.weight.detach().clone()
    of_forgotten, everyone = importance(net, forget), importance(net, torch.cat([forget, retain]))
    selected = of_forgotten > 1.2 * everyone
    assert selected.any()
    assert not selected.all()
    report = SSD(alpha=1.2, lam=0.5).edit(session(net, forget, retain))
    expected = torch.where(selected, before * (0.5 * everyone / of_forgotten).clamp(max=1.0), before)
    torch.testing.assert_close(net.weight.detach(), expected)
    assert report["changed_share"] == selected.float().mean().item()


def test_a_smaller_last_batch_counts_by_its_rows() -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    other.load_state_dict(net.state_dict())
    row = torch.randn(1, 4)
    rows = row.repeat(5, 1)  # all alike, so that batches of 2, 2 and 1 have one gradient
    SSD(alpha=0.5, batch_size=2).edit(session(net, row * 3, rows))
    SSD(alpha=0.5, batch_size=5).edit(session(other, row * 3, rows))
    torch.testing.assert_close(net.weight, other.weight)


def test_with_alpha_infinite_nothing_changes(tmp_path: Path) -> None:
    store, method = tmp_path / "store", SSD(alpha=math.inf)
    fit(store, People.make(), method=method, adapter=None)
    before = tensors_of(store)
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    fit(store, People.make(), method=method, adapter=None)
    assert_bitwise_equal(before, tensors_of(store))
    with Store.open(store) as opened:
        edit = opened.provenance()[0]["edit"]
        assert (edit["method"], edit["forgotten_rows"], edit["changed_share"]) == ("ssd", 3, 0.0)
        assert edit["arguments"] == {"alpha": "inf", "lam": 1.0, "batch_size": 1}
        assert opened.receipts()[0].guarantee == "empirical"


def test_an_edit_is_the_same_to_the_bit_when_it_is_done_again(tmp_path: Path) -> None:
    for name in ("first", "again"):
        store = tmp_path / name
        fit(store, People.make(), method=SSD(alpha=1.1), adapter=None)
        with Store.open(store) as opened:
            opened.forget(["user-3"])
        fit(store, People.make(), method=SSD(alpha=1.1), adapter=None)
        with Store.open(store) as opened:
            assert opened.provenance()[0]["edit"]["changed_share"] > 0
    assert_bitwise_equal(tensors_of(tmp_path / "first"), tensors_of(tmp_path / "again"))


class ByHand(Classifier):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_a_module_that_optimizes_by_hand_is_refused_and_serves_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), module=ByHand(), method=SSD(), adapter=None)
    before = tensors_of(store)
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    with pytest.raises(UnsupportedError, match="uses manual optimization"):
        fit(store, People.make(), module=ByHand(), method=SSD(), adapter=None)
    assert_bitwise_equal(before, tensors_of(store))


def test_an_edit_in_the_scripts_own_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="separate process"):
        fit(tmp_path / "store", People.make(), method=SSD(), adapter=None, isolation="none")


@pytest.mark.parametrize("arguments", [{"alpha": 0}, {"lam": -1.0}, {"batch_size": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        SSD(**arguments)
