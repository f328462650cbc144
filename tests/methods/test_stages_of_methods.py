"""Which layers the stages of a method train: one group a slice, several slices a group, or all layers at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods import SISA, S3TMethod, UnlearningMethod
from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Receipt, Store
from tests.people import Classifier, People, assert_bitwise_equal, fit, tensors_of
from tests.tiers import nightly_except

FINER = S3TMethod(shards=1, slices=4, budget=2, groups=2)
METHODS: dict[str, UnlearningMethod] = {"finer slices": FINER, "sisa": SISA(shards=1, slices=4)}


def blocks_of(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[2] for name in tensors if name.startswith("network.blocks.")}


def person_in(slice_: int) -> str:
    partition = Partition(1, 4)
    return next(name for name in (f"user-{n}" for n in range(40)) if partition.place(name).slice == slice_)


def test_two_slices_share_a_group_of_layers(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), method=FINER)
    for unit, tensors in tensors_of(tmp_path / "store").items():
        assert blocks_of(tensors) == ({"2", "3"} if unit.stage <= 2 else {"0", "1"})


@pytest.mark.nightly
def test_a_second_stage_of_a_group_goes_on_where_the_first_left_it(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), method=FINER, adapter={"peft_type": "LORA", "r": 2}, epochs=1)
    found = tensors_of(tmp_path / "store")
    one = next(unit for unit in found if unit.stage == 2)
    first, second = found[one.lineage[0]], found[one]
    name = next(name for name in first if "lora_A" in name)
    start = torch.nn.functional.cosine_similarity(first[name].flatten(), second[name].flatten(), dim=0)
    assert start > 0.9  # one drawn anew points anywhere


def test_sisa_trains_all_layers_at_every_stage(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), method=METHODS["sisa"])
    found = tensors_of(tmp_path / "store")
    assert [str(unit) for unit in found] == ["0/0", "0/0-1", "0/0-1-2", "0/0-1-2-3"]
    assert all(blocks_of(tensors) == {"0", "1", "2", "3"} for tensors in found.values())


@pytest.mark.parametrize(
    "adapter",
    [pytest.param(None, marks=pytest.mark.nightly), {"peft_type": "LORA", "r": 2}],
    ids=["whole layers", "lora"],
)
@pytest.mark.parametrize("name", nightly_except(METHODS, "sisa"))
def test_the_state_before_the_forgotten_slice_serves_as_it_did_when_it_was_trained(
    name: str, adapter: object, tmp_path: Path
) -> None:
    method, store, x = METHODS[name], tmp_path / "store", People.make(10, seed=5).features
    fit(store, People.make(), method=method, adapter=adapter)
    with Store.open(store) as opened:
        order = tuple(opened.options["sequences"][0])
    with EnsembleModule.from_store(store, Classifier()) as served:
        whole = served(x)
        receipt = served.forget([person_in(order[-1])])
        assert isinstance(receipt, Receipt)
        assert served.survivors[0].stage == 3
        shorter = served(x)
    assert not torch.equal(whole, shorter)
    with EnsembleModule.from_store(store, Classifier()) as fresh:  # loaded at once, not fallen back to
        assert torch.equal(fresh(x), shorter)


@pytest.mark.parametrize("name", nightly_except(METHODS, "finer slices"))
def test_what_survives_and_what_is_rebuilt_is_what_a_training_without_the_person_gives(
    name: str, tmp_path: Path
) -> None:
    method, person = METHODS[name], person_in(2)
    for folder, people in (("store", People.make()), ("other", People.make().replaced(person))):
        fit(tmp_path / folder, people, method=method)
        with Store.open(tmp_path / folder) as opened:
            opened.forget([person])
    assert tensors_of(tmp_path / "store")
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "other"))
    fit(tmp_path / "store", People.make(), method=method)
    fit(tmp_path / "scratch", People.make().without(person), method=method)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


def test_more_groups_than_slices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most the number of slices, 2, but got 3"):
        S3TMethod(shards=1, slices=2, budget=1, groups=3)


@pytest.mark.nightly
def test_a_shallow_unit_has_the_group_that_its_stage_trains(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), method=FINER)
    with Store.open(tmp_path / "store") as opened:
        layers = {UnitId.parse(record["unit"]).stage: record["layers"] for record in opened.provenance()}
    assert layers[2] == ["network.blocks.2", "network.blocks.3"]
    assert layers[3] == ["network.blocks.0", "network.blocks.1"]
