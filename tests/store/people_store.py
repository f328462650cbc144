"""A store with people in it and units built, without any training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.plan import Partition, Place, UnitId, units_of
from lightning_s3t.store import BuildSession, Store

SETTINGS = {"partition": {"shards": 2, "slices": 3, "seed": 0}}
PARTITION = Partition(2, 3, 0)
PEOPLE = [f"user-{number}" for number in range(60)]
UNITS = units_of(2, [(0, 1, 2), (1, 2, 0)])


def in_place(shard: int, slice_: int, number: int = 0) -> str:
    """Somebody whose data is in a slice."""
    return [person for person in PEOPLE if PARTITION.place(person) == Place(shard, slice_)][number]


def session(store: Store) -> BuildSession:
    """What a fit does to a store, without the fit lock: several tests are several processes, as it were."""
    return BuildSession(store._backend, store._keyring, store._partition, store._forgetting, store.manifest.method)


def build(store: Store, unit: UnitId, number: float = 0.0, *files: Path) -> None:
    """Train a unit, as it were."""
    attempt = session(store).start_unit(unit, f"key-{unit}")
    for path in files:
        attempt.register_file(path)
        path.write_bytes(b"x" * 100)
    attempt.commit({"w": torch.full((4,), number)}, {"unit": str(unit)}, None)


def make(path: Path, register: bool = True) -> Store:
    """A store in which every unit is built."""
    store = Store.create(path, SETTINGS, register)
    session(store).register(PEOPLE)
    for number, unit in enumerate(UNITS):
        build(store, unit, number)
    return store


@contextmanager
def snapshots_stay() -> Iterator[None]:
    """Refuse to unlink snapshots in this process, as on a disk that has become read-only."""
    unlink = os.unlink

    def refusing(path: str, **options: Any) -> None:
        if str(path).endswith(".safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "unlink", refusing)
        yield
