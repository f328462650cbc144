"""A shard that falls back to another survivor is changed in place, whole or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.stages import Snapshot, live_tensors
from tests.serving.shards import IMAGES, LORA, Shards, make_vit

SHORTER, OTHER_ORDER, LONGER = UnitId(0, (0, 1)), UnitId(0, (0, 2, 1)), UnitId(0, (3, 2, 1, 0))


def answers_as_built_anew(shards: Shards) -> bool:
    answers = zip(shards.ask("sequential", IMAGES), shards.ask_alone(IMAGES), strict=True)
    return all(torch.equal(a, b) for a, b in answers)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "whole layers"])
@pytest.mark.parametrize("unit", [SHORTER, OTHER_ORDER, LONGER], ids=str)
def test_a_shard_answers_as_its_new_survivor(unit: UnitId, adapter: object) -> None:
    shards = Shards(make_vit(), [3, 2], adapter)
    before = shards.ask("sequential", IMAGES)
    shards.serve(unit)
    after = shards.ask("sequential", IMAGES)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert answers_as_built_anew(shards)


@pytest.mark.parametrize("unit", [SHORTER, OTHER_ORDER], ids=str)
def test_no_tensor_is_allocated_for_a_survivor_that_is_no_longer(unit: UnitId) -> None:
    shards = Shards(make_vit(), [3])
    before = {tensor.data_ptr() for tensor in shards.served.parameters()}
    shards.serve(unit)
    assert {tensor.data_ptr() for tensor in shards.served.parameters()} <= before


def test_what_is_deactivated_is_let_go() -> None:
    shards = Shards(make_vit(), [3])
    names = set(shards.served.stand_ins(0))
    shards.serve(SHORTER)
    gone = names - set(shards.served.stand_ins(0))
    assert gone == set(shards.builder.targets[3])


def test_only_what_differs_is_read() -> None:
    shards = Shards(make_vit(), [3])
    read: list[UnitId] = []

    def load(unit: UnitId) -> Snapshot:
        read.append(unit)
        return shards.snapshots[unit]

    shards.served.load_survivor(SHORTER, tuple(map(str, SHORTER.lineage)), load)
    assert read == [SHORTER]  # for its head


def test_a_shard_whose_new_survivor_is_revoked_meanwhile_stays_as_it_was() -> None:
    shards = Shards(make_vit(), [3])
    before = shards.ask("sequential", IMAGES)

    def load(unit: UnitId) -> Snapshot:
        if unit == OTHER_ORDER:
            raise RevokedError("gone")
        return shards.snapshots[UnitId(0, (0, 1))]

    with pytest.raises(RevokedError):
        shards.served.load_survivor(OTHER_ORDER, tuple(map(str, OTHER_ORDER.lineage)), load)
    assert shards.served.survivors == {0: UnitId(0, (0, 1, 2))}
    assert torch.equal(shards.ask("sequential", IMAGES)[0], before[0])


def test_a_shard_that_could_not_be_changed_does_not_answer() -> None:
    shards = Shards(make_vit(), [3])

    def load(unit: UnitId) -> Snapshot:
        return {name: tensor[:0] for name, tensor in shards.snapshots[UnitId(0, (0, 1))].items()}

    with pytest.raises(Exception, match="has shape"):
        shards.served.load_survivor(SHORTER, tuple(map(str, SHORTER.lineage)), load)
    assert shards.served.survivors == {}


def test_what_was_taken_up_while_somebody_predicts_can_be_changed_later() -> None:
    shards = Shards(make_vit(), [])
    with torch.inference_mode():
        shards.serve(UnitId(0, (0, 1, 2)))
    shards.serve(OTHER_ORDER)
    assert answers_as_built_anew(shards)


def test_a_shard_without_a_survivor_has_no_modules() -> None:
    shards = Shards(make_vit(), [3, 1])
    shards.served.drop(0)
    assert list(shards.served.survivors) == [1]
    assert [name for name, _ in shards.served.named_children()] == ["1"]


def test_what_is_served_has_neither_gradients_nor_a_training_mode() -> None:
    shards = Shards(make_vit(), [3])
    shards.serve(SHORTER)
    own = [p for module in shards.served.stand_ins(0).values() for n, p in module.named_parameters() if "base" not in n]
    assert not any(parameter.requires_grad for parameter in own)
    assert not any(module.training for module in shards.served.stand_ins(0).values())


def test_stand_ins_move_with_the_module_that_they_are_in() -> None:
    shards = Shards(make_vit(), [2])
    nn.ModuleList([shards.root, shards.served]).double()
    shards.serve(UnitId(0, (0,)))
    (answer,) = shards.ask("sequential", IMAGES.double())
    assert answer.dtype == torch.float64


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "whole layers"])
@pytest.mark.parametrize("unit", [SHORTER, LONGER, None], ids=str)
def test_what_is_deactivated_is_overwritten_in_memory(unit: UnitId | None, adapter: object) -> None:
    shards = Shards(make_vit(), [3, 2], adapter)
    before, other = live_tensors(shards.served.stand_ins(0)), shards.ask("sequential", IMAGES)[1]
    if unit is None:
        shards.served.drop(0)
    else:
        shards.serve(unit)
    used = {id(tensor) for tensor in shards.served.parameters()} | {id(tensor) for tensor in shards.served.buffers()}
    gone = [tensor for tensor in before.values() if id(tensor) not in used]
    assert gone
    assert not any(tensor.any() for tensor in gone)
    assert torch.equal(shards.ask("sequential", IMAGES)[-1], other)
    assert answers_as_built_anew(shards)
