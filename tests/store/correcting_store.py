"""A small store whose units say in their key whose data they hold, in which version: a fit without any training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import Partition, UnitId, units_of
from lightning_s3t.store import Attempt, Store
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
PARTITION = Partition(1, 2, 0)
UNITS = units_of(1, [(0, 1), (1, 0)])


def _two_in(slice_: int) -> list[str]:
    return [f"user-{n}" for n in range(30) if PARTITION.place(f"user-{n}").slice == slice_][:2]


ANN, BOB = _two_in(0)
CLEO, DAN = _two_in(1)
PEOPLE = [ANN, BOB, CLEO, DAN]


@dataclass
class Data:
    """The training data: the version of everyone's rows."""

    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PEOPLE, 0))

    def correct(self, person: str) -> None:
        self.versions[person] += 1


@dataclass(frozen=True)
class Plan:
    """What a fit has to build: the key of every unit, and the newest request when its data was chosen."""

    keys: Mapping[UnitId, str]
    as_of: int


def make(path: Path) -> Store:
    store = Store.create(path, SETTINGS)
    session(store).register(PEOPLE)
    return store


def plan(store: Store, data: Data, as_loaded: Mapping[str, int] | None = None) -> Plan:
    """What every unit should be: whose data it holds, in which version, and what it stands on."""
    as_of = store.request_number
    versions = as_loaded if as_loaded is not None else data.versions
    left_out = store.forgotten(PEOPLE) | store.restricted(PEOPLE)
    keys: dict[UnitId, str] = {}
    for unit in UNITS:
        holds = [
            f"{person}.{versions[person]}"
            for person in PEOPLE
            if PARTITION.place(person).slice in unit.prefix and person not in left_out
        ]
        parent = f"({keys[unit.parent]})" if unit.parent is not None else ""
        keys[unit] = f"{unit}:{','.join(holds)}{parent}"
    return Plan(keys, as_of)


def begin(store: Store, found: Plan) -> Attempt | None:
    """Begin the first unit that a fit has to build, as a fit does."""
    alive = store.alive()
    for unit, key in found.keys.items():
        if unit in alive and alive[unit].key == key:
            continue
        if unit.parent is not None and unit.parent not in alive:
            continue
        if unit in alive:
            session(store).drop([unit], found.as_of)
        return session(store).start_unit(unit, key, found.as_of)
    return None


def commit(attempt: Attempt) -> None:
    digest = hashlib.sha256(attempt.key.encode()).digest()
    attempt.commit({"w": torch.tensor(list(digest))}, {"made": attempt.key})


def build(store: Store, data: Data) -> None:
    """A whole fit."""
    found = plan(store, data)
    while (attempt := begin(store, found)) is not None:
        commit(attempt)


def keys_of(store: Store) -> dict[str, str]:
    """What serves or may serve next."""
    return {str(unit): record.key for unit, record in store.alive().items()}


def check(store: Store, data: Data) -> None:
    """Nothing in service holds what it must not, or stands on anything but what is there; and the store is whole."""
    alive = store.alive()
    left_out = store.forgotten(PEOPLE) | store.restricted(PEOPLE)
    allowed = {f"{person}.{version}" for person, version in data.versions.items() if person not in left_out}
    for unit, record in alive.items():
        assert holds(record.key) <= allowed, f"{unit} serves with {holds(record.key) - allowed}"
        if unit.parent is not None:
            assert f"({alive[unit.parent].key})" in record.key
        expected = list(hashlib.sha256(record.key.encode()).digest())
        assert store.load(unit)["w"].tolist() == expected
    found = store.verify()
    assert found.passed, found.problems
    kept = {one.entry.digest for one in store._ledger.aside()} | {record.snapshot for record in alive.values()}
    assert {path.stem for path in (store.path / "snapshots").iterdir()} == kept


def holds(key: str) -> set[str]:
    """Whose data a unit holds, in which version, and all that it stands on."""
    return {one for part in key.replace(")", "").split("(") for one in part.partition(":")[2].split(",") if one}


def commit_unless_revoked(attempt: Attempt) -> None:
    """Commit what was begun before a request; what the request reaches is not kept."""
    try:
        attempt.check()
        commit(attempt)
    except RevokedError:
        attempt.abandon()
