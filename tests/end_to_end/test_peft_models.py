"""Modules that have PEFT adapters of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import AdapterError
from lightning_s3t.store import Store
from lightning_s3t.tuning.adapters import DEFAULT_ADAPTER
from tests.people import ARGUMENTS, Classifier, People, assert_bitwise_equal, fit, tensors_of


class Adapted(Classifier):
    """Trains LoRA of rank 3 on its blocks' linear layers, and its head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(12)
            lora = LoraConfig(r=3, target_modules=["linear"], modules_to_save=["head"])
            self.network: Any = get_peft_model(self.network, lora)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trained with user-3's rows, and with others in their place."""
    folder, people = tmp_path_factory.mktemp("adapted"), People.make()
    for name, rows in (("a", people), ("b", people.replaced("user-3"))):
        fit(folder / name, rows, module=Adapted(), adapter=DEFAULT_ADAPTER, epochs=1)
    return [folder / "a", folder / "b"]


def test_the_modules_own_adapters_are_trained_group_by_group(stores: list[Path]) -> None:
    with Store.open(stores[0]) as store:
        trained = {unit.stage: record.provenance["parameters"] for unit, record in store.alive().items()}
    names = {stage: sorted(name.split("model.", 2)[-1] for name in found) for stage, found in trained.items()}
    for stage, blocks in ((1, (2, 3)), (2, (0, 1))):
        assert names[stage] == sorted(
            [
                *(f"blocks.{block}.linear.lora_{side}.default.weight" for block in blocks for side in "AB"),
                "head.modules_to_save.default.bias",
                "head.modules_to_save.default.weight",
            ]
        )


def test_they_are_free_of_a_forgotten_person_to_the_last_bit(stores: list[Path], tmp_path: Path) -> None:
    left = []
    for store in stores:
        shutil.copytree(store, tmp_path / store.name)
        EnsembleModule.from_store(tmp_path / store.name, Adapted()).forget(["user-3"])
        left.append(tensors_of(tmp_path / store.name))
    assert left[0]
    assert_bitwise_equal(*left)


def test_another_adapter_on_top_of_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"has 4 PEFT adapters of its own .* or leave `adapter` out"):
        fit(tmp_path / "store", People.make(), module=Adapted(), adapter=ARGUMENTS["adapter"])
    assert not (tmp_path / "store").exists()


class HeadFrozen(Classifier):
    """PEFT freezes all but its adapters, the head too, as that of a causal language model."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(12)
            self.network: Any = get_peft_model(self.network, LoraConfig(r=3, target_modules=["linear"]))


def test_a_head_that_peft_has_frozen_stays_as_it_is(tmp_path: Path) -> None:
    module = fit(tmp_path / "store", People.make(), module=HeadFrozen(), adapter=DEFAULT_ADAPTER, epochs=1, budget=1)
    head = {name: tensor for name, tensor in module.state_dict().items() if ".head." in name}
    assert head
    with Store.open(tmp_path / "store") as store:
        trained = {name for record in store.alive().values() for name in record.provenance["parameters"]}
    assert trained
    assert all(".lora_" in name for name in trained)
    for tensors in tensors_of(tmp_path / "store").values():
        for name, tensor in head.items():
            assert torch.equal(tensors[name], tensor)
    with EnsembleModule.from_store(tmp_path / "store", HeadFrozen()) as served:
        assert served.forget(["user-3"]).revoked
