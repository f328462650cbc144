"""Somebody without the key who has copied the folder every day: whatever is mixed, what opens is a state that has been."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.core.units import reaches
from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.exporting import make_export_name
from tests.store.people_store import PEOPLE, UNITS, build, in_place
from tests.tiers import in_tier

ANN, BOB, EVE, DAN = in_place(0, 0), in_place(1, 0), in_place(1, 1), in_place(0, 2)
SOON = datetime.now(timezone.utc) + timedelta(hours=1)
# who may be unknown after a change, but not who is forgotten; and lists of files: docs/guarantees.md says so
NOT_SHOWN = {"subjects", "attempts", "files", "erasures"}


def export(store: Store, unit: UnitId, path: Path) -> None:
    store.export(
        make_export_name(unit), unit, [store.candidates()[one].snapshot for one in unit.lineage], {path: b"secret"}
    )


def days(folder: Path) -> list[Callable[[Store], object]]:
    return [
        lambda store: export(store, UNITS[0], folder / "a.bin"),
        lambda store: store.forget([ANN]),
        lambda store: store.schedule([EVE], SOON),
        lambda store: build(store, UNITS[0], 7),
        lambda store: store.forget([BOB], request_id="ticket-7"),
        lambda store: store.cancel([EVE]),
        lambda store: export(store, UNITS[0], folder / "b.bin"),
        lambda store: store.schedule([DAN], SOON),
        lambda store: store.rotate_key(),
        lambda store: store.forget([in_place(1, 2)]),
        lambda store: store.forget([DAN, in_place(0, 0, 1)]),
    ]


@dataclass(frozen=True)
class Day:
    """What a folder held, and what a store said of it."""

    copy: Path
    seen: str
    snapshots: dict[UnitId, str]
    cells: tuple[set[str], ...]


def look(store: Store) -> str:
    """All that the store tells of requests."""
    forgotten = sorted(store.forgotten(PEOPLE))
    records = [repr(record) for record in store.receipts()]
    waiting = {person for person in PEOPLE if store._ledger.waiting(store._keyring.hashes([person]))}
    return json.dumps([forgotten, records, store.pending(), sorted(waiting), store.exports(), store.settings])


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> tuple[Path, list[Day]]:
    """A store, and a copy of its folder from each day."""
    top = tmp_path_factory.mktemp("life")
    shutil.copytree(filled, top / "store")
    (top / "out").mkdir()
    found: list[Day] = []
    for number, step in enumerate([lambda store: None, *days(top / "out")]):
        with Store.open(top / "store") as store:
            step(store)
        with Store.open(top / "store") as store:
            reached = [
                {cell for _, request, cell in store._ledger.tombstones() if request == found_request}
                for found_request in range(1, store.request_number + 1)
            ]
            snapshots = {unit: found.snapshot for unit, found in store.candidates().items()}
            seen = look(store)
        shutil.copytree(top / "store", top / f"day {number}")
        found.append(Day(top / f"day {number}", seen, snapshots, tuple(reached)))
    return top / "store", found


def mix(store: Path, life: list[Day], draw: random.Random) -> list[str]:
    """Changes a folder with what other days' folders have, table by table, row by row and value by value."""
    done = []
    connection = sqlite3.connect(store / "ledger.db", isolation_level=None)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    tables = sorted(tables - NOT_SHOWN - {"vault"})
    for _ in range(draw.choice([1, 1, 2, 2, 3, 4, 6])):
        other, table = draw.choice(life), draw.choice(tables)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column, key = draw.choice(columns), columns[0]
        connection.execute("ATTACH ? AS other", (str(other.copy / "ledger.db"),))
        how = draw.choice(["table", "rows", "notes", "delete", "swap", "column", "journal", "units"])
        done.append(f"{how} {table}.{column} of {other.copy.name}")
        with contextlib.suppress(sqlite3.Error):
            if how == "table":
                connection.execute(f"DELETE FROM {table}")
                connection.execute(f"INSERT INTO {table} SELECT * FROM other.{table}")
            elif how == "rows":
                connection.execute(
                    f"INSERT OR REPLACE INTO {table} SELECT * FROM other.{table} ORDER BY random() LIMIT 2"
                )
            elif how == "notes":
                connection.execute("INSERT OR REPLACE INTO notes SELECT * FROM other.notes ORDER BY random() LIMIT 2")
            elif how == "delete":
                connection.execute(
                    f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} ORDER BY random() LIMIT 1)"
                )
            elif how == "swap":
                rows = connection.execute(f"SELECT {key}, {column} FROM {table} ORDER BY random() LIMIT 2").fetchall()
                if len(rows) == 2 and column != key:
                    for (place, _), (_, value) in (rows, rows[::-1]):
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, place))
            elif how == "column":
                value = draw.choice(["", 0, 1, 99, "0/1", "damage", "erasure", "request", "export", b"", "0" * 64])
                connection.execute(
                    f"UPDATE {table} SET {column} = ? WHERE {key} IN (SELECT {key} FROM {table} ORDER BY random() LIMIT 1)",
                    (value,),
                )
            elif how == "units":  # with all that belongs to them
                for name in ("vault", "artifacts", "cells", "files"):
                    connection.execute(f"DELETE FROM {name}")
                    connection.execute(f"INSERT INTO {name} SELECT * FROM other.{name}")
            else:
                shutil.copy(other.copy / "journal.jsonl", store)
                if draw.random() < 0.5:
                    lines = (store / "journal.jsonl").read_text().splitlines(keepends=True)
                    (store / "journal.jsonl").write_text("".join(lines[: draw.randint(0, len(lines))]))
        connection.execute("DETACH other")
    connection.close()
    return done


@pytest.mark.parametrize("seed", range(in_tier(25, 400)))
def test_what_opens_is_what_the_store_has_been(life: tuple[Path, list[Day]], seed: int) -> None:
    store, found = life
    draw = random.Random(seed)
    start = draw.choice([found[-1], draw.choice(found)])
    for name in [*store.iterdir()]:
        shutil.rmtree(name) if name.is_dir() else name.unlink()
    shutil.copytree(start.copy, store, dirs_exist_ok=True)
    for day in found:  # an attacker keeps everything
        shutil.copytree(day.copy / "snapshots", store / "snapshots", dirs_exist_ok=True)
    shutil.copy(found[-1].copy / "subject.key", store)
    done = mix(store, found, draw)
    try:
        with Store.open(store) as opened:
            seen, alive = look(opened), {unit: one.snapshot for unit, one in opened.candidates().items()}
            for unit in alive:
                opened.load(unit)
    except StoreError:
        return
    now = [day for day in found if day.seen == seen]
    assert now, f"{done}: {seen}"
    for unit, snapshot in alive.items():
        # it has been there, and no request has come between that reaches it
        assert any(
            day.snapshots.get(unit) == snapshot
            and not any(reaches(cells, unit.cells) for cells in now[0].cells[len(day.cells) :])
            for day in found
        ), f"{done}: {unit}"
