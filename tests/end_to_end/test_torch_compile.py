"""torch.compile: each unit's process compiles again, with the script's arguments; what serves is the ensemble."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import Tensor, nn

from lightning_s3t import EnsembleModule, Floor
from lightning_s3t.errors import StoreMismatchError
from lightning_s3t.store import Store
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of
from tests.processes import run
from tests.tiers import nightly_except

PERSON = "user-3"
SMALL: dict[str, Any] = {"shards": 1, "slices": 1, "budget": 1, "epochs": 1}


def noting(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """A backend that compiles nothing, and notes the process that asked for it."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{os.getpid()}\n")
    return graph.forward


def as_a_whole(**options: Any) -> Any:
    return torch.compile(Classifier(), **options)


def wrapped(**options: Any) -> Classifier:
    module: Any = Classifier()
    module.network = torch.compile(module.network, **options)
    return module


class Wrapper(nn.Module):
    """What torch.compile makes of a network, without compiling: adapters are drawn by the paths of what they adapt."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network

    def forward(self, x: Tensor) -> Any:
        return self._orig_mod(x)


def wrapped_by_hand() -> Classifier:
    module: Any = Classifier()
    module.network = Wrapper(module.network)
    return module


def in_place(**options: Any) -> Classifier:
    module = Classifier()
    module.network.compile(**options)
    return module


def its_forward(**options: Any) -> Classifier:
    module: Any = Classifier()
    module.network.forward = torch.compile(module.network.forward, **options)
    return module


WAYS = [as_a_whole, wrapped, in_place, its_forward]


@pytest.mark.parametrize("make", nightly_except(WAYS, wrapped))
@pytest.mark.parametrize("arguments", nightly_except([{}, {"parallel_units": 2}], {}))
def test_each_unit_compiles_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    two = {**SMALL, "shards": 2}
    fit(tmp_path / "store", People.make(), module=make(backend=noting), **two, **arguments)
    processes = set((tmp_path / "notes").read_text().split())
    assert len(processes) == 3  # the rehearsal's and two units'
    assert str(os.getpid()) not in processes
    # in processes of their own too: backward passes of what is compiled here would start threads that no fork survives
    fit(tmp_path / "plain", People.make(), module=wrapped_by_hand() if make is wrapped else Classifier(), **two)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "plain"))


IN_A_FORK = """
from pathlib import Path
import torch
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of

module = Classifier()
module.network = torch.compile(module.network, backend="eager", fullgraph=True)
for isolation in ("fork", "none"):  # in this order: what torch compiles can start threads that a fork does not survive
    fit(Path(isolation), People.make(), module=module, epochs=1, shards=1, isolation=isolation)
assert_bitwise_equal(tensors_of(Path("fork")), tensors_of(Path("none")))
"""


@pytest.mark.nightly
def test_a_forked_unit_compiles_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IN_A_FORK)
    run(tmp_path, "script.py")


@pytest.mark.nightly
def test_a_store_belongs_to_what_was_compiled(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), **SMALL)
    with pytest.raises(StoreMismatchError, match=r"training\.compiled"):
        fit(tmp_path / "store", People.make(), module=wrapped(backend="eager"), **SMALL)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("g++") is None, reason="inductor needs a compiler")
def test_with_inductor_a_rebuild_is_bit_for_bit_a_training_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    people = People.make()
    fit(tmp_path / "rebuilt", people, module=wrapped(), shards=1, epochs=1)
    with Store.open(tmp_path / "rebuilt") as store:
        assert store.forget([PERSON]).revoked
    fit(tmp_path / "rebuilt", people, module=wrapped(), shards=1, epochs=1)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "another"))
    fit(tmp_path / "scratch", people.without(PERSON), module=wrapped(), shards=1, epochs=1)
    assert_bitwise_equal(tensors_of(tmp_path / "rebuilt"), tensors_of(tmp_path / "scratch"))


@pytest.mark.nightly
@pytest.mark.parametrize("make", [in_place, wrapped])
def test_a_compiled_network_serves_as_it_would_if_it_were_not(tmp_path: Path, make: Callable[..., Any]) -> None:
    options = {"backend": "eager", "fullgraph": True}  # torch fails rather than gives up compiling
    fit(tmp_path / "store", People.make(), module=make(**options), shards=1, slices=4, epochs=1)
    served = EnsembleModule.from_store(tmp_path / "store", make(**options))
    features = People.make(seed=6).features
    serving = set()
    for person in (PERSON, "user-5", "user-9"):
        if served.survivors:
            serving.add(served.survivors[0])
            compiled = served(features)
            with torch.compiler.set_stance("force_eager"):
                assert torch.equal(compiled, served(features))
        served.forget([person])
    assert len(serving) > 1


@pytest.mark.parametrize("make", [from_compiled, lambda compiled: compiled])
def test_a_module_compiled_as_a_whole_serves_the_ensemble_and_not_itself(
    trained: Path, tmp_path: Path, make: Any
) -> None:
    # a fit leaves compiled steps on the module, which call the module that they were compiled for
    shutil.copytree(trained, tmp_path / "store")
    served = EnsembleModule.from_store(tmp_path / "store", make(torch.compile(Classifier(), backend="eager")))
    features = People.make(seed=6).features
    assert torch.equal(served(features), EnsembleModule.from_store(tmp_path / "store", Classifier())(features))


@pytest.mark.nightly
@pytest.mark.parametrize("floor", [Floor(), Floor(layers=2, width=24)])
def test_a_compiled_network_serves_its_floor(tmp_path: Path, floor: Floor) -> None:
    store, features = tmp_path / "store", People.make(seed=6).features
    fit(store, People.make(), epochs=1, floor=floor)
    with EnsembleModule.from_store(store, in_place(backend="eager")) as compiled:
        for person in (PERSON, "user-5"):
            compiled.forget([person])
            with EnsembleModule.from_store(store, Classifier()) as plain:
                assert torch.equal(compiled(features), plain(features))
