"""EnsemblePredictor: the same answers for a torch module, without Lightning; and what is closed does not answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_s3t import EnsembleModule, EnsemblePredictor
from lightning_s3t.errors import (
    ConfigurationError,
    EnsembleError,
    NoSurvivorError,
    StoreMismatchError,
    UnsupportedError,
)
from lightning_s3t.store import Receipt, Store
from tests.people import Classifier

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A store of its own for each test, since a forget cannot be undone."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


class Plain(nn.Module):
    """What a service keeps of the Classifier: its network, under the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Classifier().network
        self.forgotten: list[Receipt] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def on_forget(self, receipt: Receipt) -> None:
        self.forgotten.append(receipt)


@torch.no_grad()
def test_a_torch_module_is_served_as_the_lightning_module_is(store: Path) -> None:
    predictor, served = EnsemblePredictor.from_store(store, Plain()), EnsembleModule.from_store(store, Classifier())
    assert torch.equal(predictor(X), served(X))
    receipt = predictor.forget(["user-1"])
    assert receipt.revoked
    assert predictor.module.forgotten == [receipt]
    assert torch.equal(predictor(X), served(X))
    assert predictor.survivors == served.survivors


def test_neither_lightning_nor_its_extras_are_imported(store: Path) -> None:
    code = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
import torch
from torch import nn
from lightning_s3t.serving import EnsemblePredictor

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x):
        return x + torch.relu(self.norm(self.linear(x)))

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, x):
        return self.network(x)

module = Plain()
module.network.load_state_dict(torch.load({str(store.parent / "network.pt")!r}))
with EnsemblePredictor.from_store({str(store)!r}, module) as predictor, torch.no_grad():
    predictor.forget(["user-1"])
    torch.save(predictor(torch.load({str(store.parent / "x.pt")!r})), {str(store.parent / "answer.pt")!r})
assert "lightning" not in sys.modules
"""
    torch.save(Classifier().network.state_dict(), store.parent / "network.pt")
    torch.save(X, store.parent / "x.pt")
    subprocess.run([sys.executable, "-c", code], check=True)
    with torch.no_grad():
        expected = EnsembleModule.from_store(store, Classifier())(X)
    assert torch.equal(torch.load(store.parent / "answer.pt"), expected)


@pytest.mark.parametrize("kind", [EnsemblePredictor, EnsembleModule])
def test_what_is_closed_does_not_answer(store: Path, kind: type[EnsemblePredictor]) -> None:
    with kind.from_store(store, Classifier()) as served, torch.no_grad():
        served(X)
    for ask in (lambda: served(X), lambda: served.forget(["user-1"]), served.refresh):
        with pytest.raises(EnsembleError, match=f"This {kind.__name__} is closed"):
            ask()
    served.close()  # once more does nothing
    with Store.open(store) as opened:
        assert opened.request_number == 0


def test_a_store_whose_module_is_refused_is_closed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    close = Store.close
    monkeypatch.setattr(Store, "close", lambda self: (closed.append(self.path), close(self)))
    with pytest.raises(StoreMismatchError):
        EnsemblePredictor.from_store(store, nn.Linear(1, 1))
    assert closed == [store]


def test_a_store_that_no_fit_has_trained_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", {"partition": {"shards": 1, "slices": 2}}).close()
    with pytest.raises(NoSurvivorError, match="no fit has come yet"):
        EnsemblePredictor.from_store(tmp_path / "store", nn.Linear(4, 2))


def test_a_predictor_is_not_served_again(store: Path) -> None:
    served = EnsemblePredictor.from_store(store, Plain())
    with pytest.raises(ConfigurationError, match="is already an EnsemblePredictor"):
        EnsemblePredictor.from_store(store, served)


@pytest.mark.parametrize("name", ["aggregate", "passes"])
def test_an_unknown_choice_is_refused(store: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Expected argument `{name}` to be one of .* but got 'max'"):
        EnsemblePredictor.from_store(store, Plain(), **{name: "max"})  # type: ignore[arg-type]


def test_the_way_to_aggregate_may_be_changed_and_an_unknown_one_is_refused(store: Path) -> None:
    served = EnsemblePredictor.from_store(store, Plain())
    with torch.no_grad():
        mean = served(X)
        served.aggregate = "single"
        assert not torch.equal(served(X), mean)
    with pytest.raises(ConfigurationError, match="Expected argument `aggregate`"):
        served.aggregate = "max"  # type: ignore[assignment]
    assert served.aggregate == "single"


def test_it_is_neither_trained_nor_loaded_from_a_checkpoint(store: Path) -> None:
    served = EnsemblePredictor.from_store(store, Plain())
    with pytest.raises(UnsupportedError, match="stays in eval mode"):
        served.train()
    with pytest.raises(UnsupportedError, match="loaded from its store"):
        served.load_state_dict({})


def test_a_call_past_the_network_is_refused(store: Path) -> None:
    served = EnsemblePredictor.from_store(store, Plain())
    with pytest.raises(EnsembleError, match=r"bypassing network\.forward"):
        served.module.network.head(torch.zeros(1, 16))


def test_it_moves_as_a_module_does(store: Path) -> None:
    served = EnsemblePredictor.from_store(store, Plain()).double()
    with torch.no_grad():
        assert served(X.double()).dtype == torch.float64
        served.forget(["user-1"])
        assert served(X.double()).dtype == torch.float64


def test_several_threads_may_call_it(store: Path) -> None:
    served = EnsemblePredictor.from_store(store, Plain())
    with torch.no_grad():
        expected = served(X)

    def ask(_: int) -> Tensor:
        with torch.no_grad():
            return served(X)

    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(answer, expected) for answer in threads.map(ask, range(20)))
