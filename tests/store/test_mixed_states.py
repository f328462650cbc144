"""Somebody without the key who has copied the folder every day: whatever is mixed, what opens is a state that has been."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.core.events import GENESIS, Cancellation, Event, Exported, Request, Schedule
from lightning_s3t.core.units import reaches
from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name
from lightning_s3t.store.keys.identities import hash_subject, read_keys
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place
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
    """What a folder held."""

    copy: Path
    snapshots: dict[UnitId, str]
    requests: int


@dataclass(frozen=True)
class Life:
    """A store, a copy of its folder from each day, and the whole of its history."""

    store: Path
    days: list[Day]
    events: list[Event]
    who: dict[str, str]  # by the hash, under as many keys as there were


@dataclass(frozen=True)
class Told:
    """What a store tells of requests."""

    forgotten: set[str]
    waiting: set[str]
    exports: set[str]


def tell(store: Store) -> Told:
    waiting = {person for person in PEOPLE if store._ledger.waiting(store._keyring.hashes([person]))}
    return Told(store.forgotten(PEOPLE), waiting, set(store.exports()))


def expected(life: Life, events: list[Event]) -> Told:
    """What a store has to tell that has come so far: all over again, from its events alone."""
    told, cells = Told(set(), set(), set()), dict[str, tuple[str, ...]]()
    for event in events:
        if event.kind == "request":
            asked = event.read(Request)
            people = {life.who[hash_] for hash_, _ in asked.tombstones}
            reached = {name for name, where in cells.items() if reaches([cell for _, cell in asked.tombstones], where)}
            told = Told(told.forgotten | people, told.waiting - people, told.exports - reached)
        elif event.kind == "schedule":
            told.waiting.update(life.who[hash_] for hash_, _, _ in event.read(Schedule).pending)
        elif event.kind == "cancellation":
            told.waiting.difference_update(life.who[hash_] for hash_ in event.read(Cancellation).pending)
        elif event.kind == "export":
            made = event.read(Exported)
            cells[made.name] = made.cells
            told.exports.add(made.name)
    return told


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Life:
    top = tmp_path_factory.mktemp("life")
    shutil.copytree(filled, top / "store")
    (top / "out").mkdir()
    found: list[Day] = []
    for number, step in enumerate([lambda store: None, *days(top / "out")]):
        with Store.open(top / "store") as store:
            step(store)
        with Store.open(top / "store") as store:
            snapshots = {unit: found.snapshot for unit, found in store.candidates().items()}
            requests, events = store.request_number, list(store._ledger.events())
        shutil.copytree(top / "store", top / f"day {number}")
        found.append(Day(top / f"day {number}", snapshots, requests))
    keys = read_keys(top / "store")
    who = {hash_subject(keys[:count], person).hex(): person for count in (1, 2) for person in PEOPLE}
    return Life(top / "store", found, events, who)


def mix(store: Path, life: Sequence[Day], draw: random.Random) -> list[str]:
    """Change a folder with what other days' folders have, table by table, row by row and value by value."""
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
def test_what_opens_is_what_the_store_has_been(life: Life, seed: int) -> None:
    store, draw = life.store, random.Random(seed)
    start = draw.choice([life.days[-1], draw.choice(life.days)])
    for name in [*store.iterdir()]:
        shutil.rmtree(name) if name.is_dir() else name.unlink()
    shutil.copytree(start.copy, store, dirs_exist_ok=True)
    for day in life.days:  # an attacker keeps everything
        shutil.copytree(day.copy / "snapshots", store / "snapshots", dirs_exist_ok=True)
    shutil.copy(life.days[-1].copy / "subject.key", store)
    done = mix(store, life.days, draw)
    try:
        with Store.open(store) as opened:
            told, position, digest = tell(opened), *opened._ledger.head()
            opened.receipts()
            serving = {unit: one.snapshot for unit, one in opened.candidates().items()}
            for unit in serving:
                opened.load(unit)
            assert opened.settings == SETTINGS
    except StoreError:
        return
    so_far = life.events[:position]
    assert digest == (so_far[-1].digest if so_far else GENESIS), done
    right = expected(life, so_far)
    assert (told.forgotten, told.waiting) == (right.forgotten, right.waiting), done
    assert told.exports >= right.exports, done  # more are copies that were begun, for all that anybody knows
    requests = [event for event in life.events if event.kind == "request"]
    now = sum(event.position <= position for event in requests)
    for unit, snapshot in serving.items():
        # it has been there, and no request that reaches it has come between
        days_of_it = [day for day in life.days if day.snapshots.get(unit) == snapshot]
        assert any(
            not any(reaches([cell for _, cell in event.read(Request).tombstones], unit.cells) for event in between)
            for between in (requests[day.requests : now] for day in days_of_it)
        ), f"{done}: {unit}"
