"""Units that stand by are in memory, and what may not serve any more is not."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from lightning_s3t.errors import DamagedError
from lightning_s3t.plan import UnitId
from lightning_s3t.serving.served_shards import SnapshotPreloader

ONE, TWO = UnitId(0, (0,)), UnitId(0, (0, 1))


class Disk:
    """Snapshots, and which of them were read."""

    def __init__(self) -> None:
        self.read: list[UnitId] = []

    def load(self, unit: UnitId) -> dict[str, Tensor]:
        self.read.append(unit)
        return {"w": torch.full((2,), float(unit.stage))}


def test_nothing_is_read_after_units_stand_by() -> None:
    disk = Disk()
    snapshots = SnapshotPreloader(disk.load, keep=True)
    snapshots.renew({ONE: "a", TWO: "b"})
    disk.read.clear()
    snapshots.renew({ONE: "a"})
    assert snapshots.load(ONE)["w"].tolist() == [1.0, 1.0]
    assert disk.read == []


def test_without_it_every_unit_is_read_when_it_is_asked_for() -> None:
    disk = Disk()
    snapshots = SnapshotPreloader(disk.load, keep=False)
    snapshots.renew({ONE: "a", TWO: "b"})
    assert disk.read == []
    snapshots.load(TWO)
    assert disk.read == [TWO]


def test_what_is_revoked_is_let_go() -> None:
    snapshots = SnapshotPreloader(Disk().load, keep=True)
    snapshots.renew({ONE: "a", TWO: "b"})
    gone = weakref.ref(snapshots.load(TWO)["w"])
    snapshots.renew({ONE: "a"})
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_revoked_is_overwritten_in_memory(inference: bool) -> None:
    snapshots = SnapshotPreloader(Disk().load, keep=True)
    with torch.inference_mode(inference):
        snapshots.renew({ONE: "a", TWO: "b"})
    kept, gone = snapshots.load(ONE)["w"], snapshots.load(TWO)["w"]
    snapshots.renew({ONE: "a"})
    assert kept.tolist() == [1.0, 1.0]
    assert gone.tolist() == [0.0, 0.0]


def test_what_was_trained_anew_is_read_anew() -> None:
    disk = Disk()
    snapshots = SnapshotPreloader(disk.load, keep=True)
    snapshots.renew({ONE: "a"})
    snapshots.renew({ONE: "another"})
    assert disk.read == [ONE, ONE]


def test_what_is_revoked_is_let_go_even_if_something_new_cannot_be_read() -> None:
    def load(unit: UnitId) -> dict[str, Tensor]:
        if unit == TWO:
            raise DamagedError("It is damaged.")
        return {"w": torch.ones(2)}

    snapshots = SnapshotPreloader(load, keep=True)
    snapshots.renew({ONE: "a"})
    gone = weakref.ref(snapshots.load(ONE)["w"])
    with pytest.raises(DamagedError):
        snapshots.renew({TWO: "b"})
    gc.collect()
    assert gone() is None
