"""A method of one's own, as docs/methods.md shows it: in the script, by a registry's name, with all of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.methods import METHODS, EditingMethod, EditSession, register_method
from lightning_s3t.store import Store
from tests.people import People, assert_bitwise_equal, fit, tensors_of


@dataclass(frozen=True)
class Ascent(EditingMethod):
    """One step of gradient ascent on the rows to be forgotten."""

    name = "ascent"
    rate: float = 0.1

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        (batch,) = session.forget.batches(len(session.forget))
        parameters = list(session.parameters.values())
        gradients = torch.autograd.grad(session.loss(batch), parameters, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=self.rate)
        return {"rate": self.rate}


@pytest.fixture
def registered() -> Iterator[None]:
    register_method(Ascent)
    yield
    del METHODS["ascent"]


def test_it_is_known_by_its_name_and_edits(registered: None, tmp_path: Path) -> None:
    store, method = tmp_path / "store", {"name": "ascent", "rate": 0.5}
    fit(store, People.make(), method=method)
    before = tensors_of(store)
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    fit(store, People.make(), method=method)
    with Store.open(store) as opened:
        assert opened.provenance()[0]["edit"] == {
            "method": "ascent",
            "arguments": {"rate": 0.5},
            "forgotten_rows": 3,
            "rate": 0.5,
        }
        assert opened.receipts()[0].guarantee == "empirical"
    after = tensors_of(store)
    assert any(not torch.equal(after[unit][name], before[unit][name]) for unit in after for name in after[unit])


class Failing(Ascent):
    """Fails half-way."""

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        super().edit(session)
        raise RuntimeError("half-way")


class Dying(Ascent):
    """Dies half-way."""

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        import os
        import signal

        super().edit(session)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


@pytest.mark.parametrize("method", [Failing(), Dying()], ids=["error", "SIGKILL"])
def test_an_edit_that_ends_half_way_changes_nothing_and_the_request_waits_on(method: Ascent, tmp_path: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), method=method)
    before = tensors_of(store)
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    with pytest.raises(Exception, match=r"half-way|died"):
        fit(store, People.make(), method=method)
    assert_bitwise_equal(before, tensors_of(store))
    with Store.open(store) as opened:
        assert (opened.request_number, opened.status().waiting) == (0, 1)
    fit(store, People.make(), method=Ascent())
    with Store.open(store) as opened:
        assert (opened.request_number, opened.status().waiting) == (1, 0)


class Greedy(Ascent):
    """Changes what it must leave as it is."""

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        with torch.no_grad():
            session.module.get_submodule("network.stem").weight.add_(1.0)
        return {}


def test_an_edit_of_anything_but_the_parameters_that_are_given_is_not_kept(tmp_path: Path) -> None:
    from lightning_s3t.errors import LeakageError

    store = tmp_path / "store"
    fit(store, People.make(), method=Greedy())
    with Store.open(store) as opened:
        opened.forget(["user-3"])
    with pytest.raises(LeakageError, match=r"network\.stem\.weight"):
        fit(store, People.make(), method=Greedy())
    with Store.open(store) as opened:
        assert opened.status().waiting == 1
