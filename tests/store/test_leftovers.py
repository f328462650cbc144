"""What is left of a revoked unit in the bytes of the store: nothing."""

from __future__ import annotations

import itertools
import random
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from lightning_s3t.plan import Partition, UnitId
from lightning_s3t.store import Store, UnitRecord
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 4, "slices": 6, "seed": 0}}
UNITS = [
    UnitId(shard, order) for stage in (1, 2) for order in itertools.permutations(range(6), stage) for shard in range(4)
]
ROOT = Path(__file__).parents[2]

KILLED_BEFORE_THE_LOG_IS_EMPTIED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from lightning_s3t.store import Store
from lightning_s3t.store.ledgers.sqlite import SqliteLedger

store = Store.open({path!r})
SqliteLedger.clear_traces = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
store.forget(["user-0"])
"""


def fill(store: Store, largest: int) -> dict[UnitId, UnitRecord]:
    """Units in an arbitrary order, each with a provenance of another length: SQLite moves rows between its pages."""
    draw = random.Random(largest)
    order = sorted(draw.sample(UNITS, len(UNITS)), key=lambda unit: unit.stage)
    with store.building():
        return {
            unit: session(store)
            .start_unit(unit, f"key of {unit}.")
            .commit(
                {"w": torch.tensor([float(number)])},
                {"secret": f"made from {unit}." * draw.randrange(1, largest)},
                score=1000.123456789 + number,
            )
            for number, unit in enumerate(order)
        }


def left_in(store: Path, marks: Iterable[bytes]) -> list[tuple[str, bytes]]:
    contents = {path.name: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return [(name, mark) for mark in marks for name, content in contents.items() if mark in content]


def marks_of(records: Iterable[UnitRecord]) -> list[bytes]:
    found = [(record, struct.pack(">d", record.score or 7.5), repr(record.score).encode()) for record in records]
    return [
        mark
        for record, *score in found
        for mark in (record.snapshot.encode(), f"made from {record.unit}.".encode(), record.key.encode(), *score)
        if mark != b"None"
    ]


@pytest.mark.parametrize("largest", [5, 15, 25, 35, 60, 200])
def test_no_page_keeps_a_copy_of_a_revoked_unit(tmp_path: Path, largest: int) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        built = fill(store, largest)
        people = [f"user-{number}" for number in range(4)]
        session(store).register(people)
        for person in people:
            store.forget([person])
            alive = store.alive()
            revoked = [record for unit, record in built.items() if unit not in alive]
            assert revoked
            assert left_in(store.path, marks_of(revoked)) == []
            assert left_in(store.path, marks_of(alive.values())[:1])  # or the scan would prove nothing


def test_the_log_is_emptied_at_the_next_opening_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "store"
    place = Partition(**SETTINGS["partition"]).place("user-0")
    unit = UnitId(place.shard, (place.slice,))
    with Store.create(path, SETTINGS) as bystander:  # as long as it lives, SQLite does not delete the log itself
        session(bystander).register(["user-0"])
        record = (
            session(bystander)
            .start_unit(unit, "its key.")
            .commit({"w": torch.ones(1)}, {"secret": f"made from {unit}."})
        )
        code = KILLED_BEFORE_THE_LOG_IS_EMPTIED.format(root=str(ROOT), path=str(path))
        assert subprocess.run([sys.executable, "-c", code]).returncode == -9
        assert left_in(path, [record.snapshot.encode()])
        Store.open(path).close()
        assert left_in(path, marks_of([record])) == []


def test_a_reader_that_never_ends_delays_the_emptying_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, SETTINGS) as store:
        built = fill(store, 5)
        session(store).register(["user-0"])
        reader = sqlite3.connect(path / "ledger.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM artifacts").fetchall()
        store.forget(["user-0"])
        revoked = [record for unit, record in built.items() if unit not in store.alive()]
        reader.close()
        Store.open(path).close()
        assert left_in(path, marks_of(revoked)) == []


def test_an_abandoned_attempt_leaves_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        attempt = session(store).start_unit(UNITS[0], "key of an attempt.")
        attempt.register_file(tmp_path / "epoch-3-of-an-attempt.ckpt")
        (tmp_path / "epoch-3-of-an-attempt.ckpt").touch()
        attempt.abandon()
        assert left_in(store.path, [b"key of an attempt.", b"epoch-3-of-an-attempt"]) == []


def test_an_abandoned_attempt_without_files_leaves_nothing(path: Path) -> None:
    with Store.open(path) as store:
        session(store).start_unit(UnitId(0, (0,)), "the key of an attempt").abandon()
        assert not [file for file in path.glob("ledger.db*") if b"the key of an attempt" in file.read_bytes()]
