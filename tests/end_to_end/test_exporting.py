"""Survivors to take away: plain weights and PEFT adapters that answer as what serves does, until a request reaches them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_s3t import EnsembleModule
from lightning_s3t.cli import main
from lightning_s3t.errors import AdapterError, ConfigurationError, NoSurvivorError, UnsupportedError
from lightning_s3t.store import Store
from tests.people import CLASSES, FEATURES, Classifier, Network, People, fit
from tests.tiers import nightly_except

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": 2, "lora_dropout": 0.1},
    "rslora": {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"peft_type": "LORA", "r": 2, "rank_pattern": {"network.blocks.3.linear": 4}},
    "ia3": {"peft_type": "IA3"},
    "loha": {"peft_type": "LOHA", "r": 2},
    "lokr": {"peft_type": "LOKR", "r": 2},
}


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def inputs() -> Tensor:
    return torch.randn(64, FEATURES, generator=torch.Generator().manual_seed(3))


def answers(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module.eval()(inputs())


def load_weights(path: Path) -> Classifier:
    module = Classifier()
    module.load_state_dict(load_file(path))
    return module


def load_adapter(path: Path) -> nn.Module:
    return PeftModel.from_pretrained(Classifier().network, path)


def person_reached(store: Path, unit: Any) -> str:
    with Store.open(store) as opened:
        return next(person for person in People.make().owners if unit.reached_by(opened.partition.place(person)))


def test_exported_weights_answer_as_the_survivor_does(store: Path, tmp_path: Path) -> None:
    with EnsembleModule.from_store(store, Classifier(), aggregate="single") as served:
        [exported] = served.export(tmp_path / "model.safetensors")
        expected = answers(served)
    assert exported.unit in served.survivors.values()
    torch.testing.assert_close(answers(load_weights(tmp_path / "model.safetensors")), expected)
    assert not torch.allclose(answers(Classifier()), expected)


def test_exported_weights_of_whole_layers_answer_bit_for_bit(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), adapter=None, epochs=1)
    with EnsembleModule.from_store(tmp_path / "store", Classifier(), aggregate="single") as served:
        served.export(tmp_path / "model.safetensors")
        assert torch.equal(answers(load_weights(tmp_path / "model.safetensors")), answers(served))


@pytest.mark.parametrize("kind", nightly_except(ADAPTERS, "lora", "patterns"))
def test_an_exported_adapter_answers_bit_for_bit(tmp_path: Path, kind: str) -> None:
    fit(tmp_path / "store", People.make(), adapter=ADAPTERS[kind], epochs=1)
    with EnsembleModule.from_store(tmp_path / "store", Classifier(), aggregate="single") as served:
        served.export(tmp_path / "adapter", form="adapter")
        served.export(tmp_path / "model.safetensors")
        expected = answers(served)
    assert torch.equal(answers(load_adapter(tmp_path / "adapter")), expected)
    torch.testing.assert_close(answers(load_weights(tmp_path / "model.safetensors")), expected)


@pytest.mark.parametrize("form", ["weights", "adapter"])
def test_the_mean_of_all_exported_shards_is_the_ensemble(store: Path, tmp_path: Path, form: Any) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        exported = served.export(tmp_path / "out", form=form, each_shard=True)
        expected = answers(served)
    load = load_weights if form == "weights" else load_adapter
    assert [copy.unit.shard for copy in exported] == [0, 1]
    mean = torch.stack([answers(load(copy.path)) for copy in exported]).mean(0)
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("form", ["weights", "adapter"])
def test_a_request_names_and_erases_what_it_reaches(store: Path, tmp_path: Path, form: Any) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        first, second = served.export(tmp_path / "out", form=form, each_shard=True)
        receipt = served.forget([person_reached(store, first.unit)])
        assert receipt.exports == (first.name,)
        files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert first.provenance not in files
        assert second.provenance in files
        assert not any(path in files for path in (first.path, first.path / "adapter_model.safetensors"))
        assert receipt.erased_files == len(receipt.revoked) + (2 if form == "weights" else 3)
        again = served.export(tmp_path / "again", form=form, each_shard=True)
        assert again[0].name != first.name


def test_an_export_says_what_it_was_made_from(store: Path, tmp_path: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        [exported] = served.export(tmp_path / "model.safetensors")
        found = json.loads((tmp_path / "model.json").read_text())
        assert exported.provenance == tmp_path / "model.json"
        assert (found["name"], found["unit"], found["guarantee"]) == (exported.name, str(exported.unit), "exact")
        assert [unit["snapshot"] for unit in found["made_from"]] == [
            served.store.candidates()[unit].snapshot for unit in exported.unit.lineage
        ]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["lightning_s3t"] == exported.name


def test_what_serves_is_not_changed_by_an_export(store: Path, tmp_path: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        before = answers(served)
        served.export(tmp_path / "out", each_shard=True)
        assert torch.equal(answers(served), before)


def test_nothing_is_exported_where_nothing_serves(store: Path, tmp_path: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        served.forget(set(People.make().owners))
        with pytest.raises(NoSurvivorError):
            served.export(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("path", "form", "message"),
    [
        ("model.pt", "weights", r"end in \.safetensors"),
        ("model.safetensors", "onnx", "Expected argument `form`"),
        ("store/model.safetensors", "weights", "is inside the store"),
    ],
)
def test_a_wrong_place_or_form_is_refused(store: Path, tmp_path: Path, path: str, form: Any, message: str) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        with pytest.raises(ConfigurationError, match=message):
            served.export(tmp_path / path, form=form)
        assert served.store.exports() == []


class TiedNetwork(Network):
    """A network whose stem and last block share a weight with its head."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(CLASSES, 16)
        self.back.weight = nn.Parameter(self.back.weight.detach())
        self.head.weight = nn.Parameter(self.head.weight.detach())
        self.twin = nn.Linear(16, CLASSES, bias=False)
        self.twin.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.twin(self.stem(x))


class TiedClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.network = TiedNetwork()


def test_parameters_that_are_tied_and_have_two_values_are_refused(tmp_path: Path) -> None:
    fit(
        tmp_path / "store",
        People.make(),
        module=TiedClassifier(),
        epochs=1,
        layers="network.blocks",
        head="network.head",
    )
    with (
        EnsembleModule.from_store(tmp_path / "store", TiedClassifier()) as served,
        pytest.raises(UnsupportedError, match=r"ties network\.head\.weight, network\.twin\.weight together"),
    ):
        served.export(tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("adapter", "error", "message"),
    [
        (None, ConfigurationError, "whole layers"),
        ({"peft_type": "LORA", "r": 2, "use_dora": True}, AdapterError, "DoRA are not exported"),
    ],
)
def test_an_adapter_that_there_is_not_is_refused(tmp_path: Path, adapter: Any, error: Any, message: str) -> None:
    fit(tmp_path / "store", People.make(), adapter=adapter, epochs=1, trainer={"limit_train_batches": 1})
    with (
        EnsembleModule.from_store(tmp_path / "store", Classifier()) as served,
        pytest.raises(error, match=message),
    ):
        served.export(tmp_path / "adapter", form="adapter")


def test_a_store_from_a_script_is_exported_with_the_model_that_is_named(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [
        "export",
        str(store),
        str(out),
        "--model",
        "tests.people:Classifier",
        "--form",
        "adapter",
        "--each-shard",
    ]
    assert main(command) == 0
    assert (out / "shard-1" / "adapter_config.json").is_file()
    names = re.findall(r"named (\S+) in internal records", capsys.readouterr().out)
    assert main(["forget", str(store), *set(People.make().owners)]) == 0
    assert f"Erased exported copies: {', '.join(sorted(names))}." in capsys.readouterr().out
