"""The three guarantees, bitwise, through `trainer.fit`, with everything in use that could break them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Store
from tests.end_to_end.everything import PERSON, Forgotten, fit_with_everything, forget
from tests.people import ARGUMENTS, People, assert_bitwise_equal, fit, tensors_of
from tests.tiers import nightly_except

ADAPTERS: dict[str, Any] = {
    "lora": ARGUMENTS["adapter"],
    "whole layers": None,
    "dora": {"peft_type": "LORA", "r": 2, "use_dora": True},
}
CELLS: dict[str, dict[str, Any]] = {
    f"{name}, {data}": {"adapter": adapter, "stage_data": data}
    for name, adapter in ADAPTERS.items()
    for data in ("cumulative", "disjoint")
}


@pytest.fixture(scope="module", params=nightly_except(CELLS, "lora, cumulative"))
def forgotten(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forgotten:
    return Forgotten.make(tmp_path_factory.mktemp("forgotten"), **CELLS[request.param])


def test_what_serves_on_is_what_it_would_be_had_the_persons_rows_been_anything_else(
    forgotten: Forgotten, tmp_path: Path
) -> None:
    other = fit_with_everything(tmp_path, People.make().replaced(PERSON), **forgotten.arguments)
    forget(other, PERSON)
    assert forgotten.served
    assert_bitwise_equal(forgotten.served, tensors_of(other))


@pytest.mark.nightly
def test_rounding_what_serves_to_four_bits_brings_nothing_back(forgotten: Forgotten, tmp_path: Path) -> None:
    other = fit_with_everything(tmp_path, People.make().replaced(PERSON), **forgotten.arguments)
    forget(other, PERSON)
    mine, others = _four_bits(forgotten.served), _four_bits(tensors_of(other))
    assert any(len(tensor.unique()) > 2 for tensors in mine.values() for tensor in tensors.values())
    assert_bitwise_equal(mine, others)


def test_a_rebuild_is_a_first_training_without_the_person(forgotten: Forgotten, tmp_path: Path) -> None:
    rebuilt = fit_with_everything(forgotten.folder, People.make(), **forgotten.arguments)
    scratch = fit_with_everything(tmp_path, People.make().without(PERSON), **forgotten.arguments)
    assert len(tensors_of(scratch)) == 8
    assert_bitwise_equal(tensors_of(rebuilt), tensors_of(scratch))


def test_requests_add_up_over_fits(tmp_path: Path) -> None:
    people = People.make()
    for person in ("user-3", "user-8"):
        fit(tmp_path / "store", people)
        forget(tmp_path / "store", person)
    fit(tmp_path / "store", people)
    fit(tmp_path / "scratch", people.without("user-3", "user-8"))
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


def test_two_stores_with_equal_arguments_hold_equal_bits_whatever_the_global_seed(tmp_path: Path) -> None:
    import torch

    people = People.make()
    torch.manual_seed(1)
    fit(tmp_path / "a", people)
    torch.manual_seed(2)
    fit(tmp_path / "b", people)
    assert_bitwise_equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))


def test_another_persons_data_does_change_what_is_trained(tmp_path: Path) -> None:
    # without this, the tests above could pass because nothing is learnt at all
    people = People.make()
    fit(tmp_path / "a", people)
    fit(tmp_path / "b", people.replaced(PERSON))
    place = Partition(ARGUMENTS["shards"], ARGUMENTS["slices"]).place(PERSON)
    first, second = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    for unit, tensors in first.items():
        equal = all(tensor.equal(second[unit][name]) for name, tensor in tensors.items())
        assert equal != unit.reached_by(place)


def test_nothing_stays_behind(tmp_path: Path) -> None:
    store = fit_with_everything(tmp_path, People.make())
    with Store.open(store) as opened:
        files = {
            unit: [Path(file["path"]) for file in record.provenance["files"]]
            + [store / "snapshots" / f"{record.snapshot}.safetensors"]
            for unit, record in opened.alive().items()
        }
        place = opened.partition.place(PERSON)
        digests = {unit: record.snapshot for unit, record in opened.alive().items()}
    assert all(path.exists() for paths in files.values() for path in paths)
    assert all(len(paths) >= 2 for paths in files.values()), "every unit wrote a checkpoint"
    written = set((tmp_path / "checkpoints").rglob("*.ckpt"))
    assert written == {path for paths in files.values() for path in paths if path.suffix == ".ckpt"}

    receipt = forget(store, PERSON)

    for unit, paths in files.items():
        assert all(path.exists() != unit.reached_by(place) for path in paths)
    assert set(receipt.revoked) == {str(unit) for unit in files if unit.reached_by(place)}
    assert receipt.erased_files == sum(len(paths) for unit, paths in files.items() if unit.reached_by(place))
    everything = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert PERSON.encode() not in everything
    for unit, digest in digests.items():
        assert (digest.encode() in everything) != unit.reached_by(place)


def _four_bits(units: dict[UnitId, dict[str, Tensor]]) -> dict[UnitId, dict[str, Tensor]]:
    def rounded(tensor: Tensor) -> Tensor:
        scale = tensor.abs().max().clamp_min(1e-12) / 7
        return (tensor / scale).round().clamp(-8, 7) * scale

    return {
        unit: {name: rounded(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
        for unit, tensors in units.items()
    }
