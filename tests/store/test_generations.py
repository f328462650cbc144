"""Generations in a store: who is where, what closes one, and what moves when several are merged."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.plan import Place, UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name
from tests.store.backups import back_up, restore
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, session

SOON = datetime.now(timezone.utc) + timedelta(days=30)


def names(kind: str, count: int = 12) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


def come(store: Store, *people: str) -> int:
    return session(store).register(people, "append")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two shards of the first, and two generations after them, all built."""
    with Store.create(tmp_path / "store", SETTINGS) as made:
        come(made, *PEOPLE)
        for unit in UNITS:
            build(made, unit)
        for generation, kind in ((1, "new"), (2, "later")):
            come(made, *names(kind))
            for unit in UNITS[:3]:
                build(made, UnitId(1 + generation, unit.prefix), generation)
        yield made


def in_slice(store: Store, kind: str, slice_: int) -> str:
    return next(person for person in names(kind) if store.partition.place(person).slice == slice_)


def test_who_comes_together_is_a_generation(store: Store) -> None:
    assert store.count_generations() == (60, 12, 12)
    assert store.generations_of(["user-1", "new-1", "later-1", "stranger"]) == {"user-1": 0, "new-1": 1, "later-1": 2}
    assert [generation.closed for generation in store.generations] == [True, True, True]
    assert store.partition.all_shards == 4


def test_a_generation_is_open_until_something_is_trained_on_it(store: Store) -> None:
    assert come(store, "a") == 1
    assert come(store, "a", "b") == 1
    assert come(store, "a", "b") == 0
    assert store.generations_of(["a", "b"]) == {"a": 3, "b": 3}
    assert not store.generations[3].closed
    build(store, UnitId(4, (0,)))
    come(store, "c")
    assert store.generations_of(["c"]) == {"c": 4}


def test_a_generation_stays_closed_when_all_of_it_is_forgotten(store: Store) -> None:
    store.forget(names("later"))
    come(store, "c")
    assert store.generations_of(["c"]) == {"c": 3}
    assert store.count_generations() == (60, 12, 0, 1)


def test_who_is_retrained_is_of_the_first(store: Store) -> None:
    assert session(store).register(["c"]) == 1
    assert store.generations_of(["c"]) == {"c": 0}


def test_a_request_finds_everybody_in_their_generation(store: Store) -> None:
    person = in_slice(store, "later", 0)
    receipt = store.forget([person])
    assert receipt.revoked == ("3/0", "3/0-1", "3/0-1-2")
    assert receipt.serving == {"3": None}


def test_a_request_for_later_by_somebody_unknown_moves_to_where_that_one_then_is(store: Store) -> None:
    store.schedule(["stranger"], SOON, strict=False)
    come(store, "stranger")
    assert [cell for _, _, cell in store._ledger.scheduled()] == [store.partition.place("stranger", 0, 3).cell]
    Store.open(store.path).close()  # the history agrees


def test_a_request_for_later_finds_its_people_although_a_restored_ledger_puts_them_elsewhere(
    store: Store, tmp_path: Path
) -> None:
    path, person = store.path, "last-0"
    back_up(path, tmp_path / "backup.db")
    come(store, person)
    store.schedule([person], SOON)
    store.close()
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as opened:
        session(opened).register([person], "retrain")
        place = opened.partition.place(person)
        receipt = opened.forget_due(SOON)
        assert receipt is not None
        assert set(receipt.revoked) == {str(unit) for unit in UNITS if unit.reached_by(place)}
        assert opened.verify().passed


def test_a_request_for_later_can_be_cancelled_by_its_name_after_its_people_have_moved(store: Store) -> None:
    person = in_slice(store, "later", 0)
    store.schedule(["stranger", person], SOON, strict=False, request_id="letter")
    come(store, "stranger")
    store.rotate_key()
    store.consolidate(into=1)
    assert [found.request_id for found in store.scheduled_requests()] == ["letter"]
    assert store.cancel_request("letter") == 2
    assert store.pending() == []


def test_a_rotation_keeps_generations(store: Store) -> None:
    store.rotate_key()
    assert store.generations_of(["new-1", "later-1"]) == {"new-1": 1, "later-1": 2}


def test_merging_moves_people_requests_and_exports(store: Store, tmp_path: Path) -> None:
    person, other = in_slice(store, "later", 1), in_slice(store, "later", 0)
    store.schedule([person], SOON)
    unit, digest = UnitId(3, (0,)), store.candidates()[UnitId(3, (0,))].snapshot
    file = tmp_path / "copy.bin"
    store.export(make_export_name(unit), unit, [digest], {file: b"weights"})

    assert store.consolidate(into=1) == 1

    assert store.count_generations() == (60, 24)
    assert {unit.shard for unit in store.alive()} == {0, 1, 2}
    assert [cell for _, _, cell in store._ledger.scheduled()] == [Place(2, 1).cell]
    with Store.open(store.path) as opened:
        receipt = opened.forget([other])
        assert set(receipt.revoked) == {"2/0", "2/0-1", "2/0-1-2"}
        assert len(receipt.exports) == 1
        assert not file.exists()
        assert opened.verify().passed


@pytest.mark.parametrize("also_snapshots", [True, False])
def test_a_backup_from_before_a_merge_does_not_bring_back_who_was_forgotten_after_it(
    store: Store, tmp_path: Path, also_snapshots: bool
) -> None:
    path, gone, stays = store.path, in_slice(store, "later", 0), in_slice(store, "later", 1)
    back_up(path, tmp_path / "backup.db")
    snapshots = shutil.copytree(path / "snapshots", tmp_path / "snapshots")
    store.consolidate(into=1)
    store.forget([gone])
    store.close()
    restore(path, tmp_path / "backup.db")
    if also_snapshots:
        shutil.copytree(snapshots, path / "snapshots", dirs_exist_ok=True)
    with Store.open(path) as opened:
        assert opened.forgotten([gone]) == {gone}
        assert opened.count_generations() == (60, 23)
        assert not {unit for unit in opened.alive() if unit.shard == 3 or unit.reached_by(Place(2, 0))}
        assert opened.generations_of([stays]) == {stays: 1}
        opened.take_out_damaged()
        assert opened.verify().passed


def test_a_merge_of_generations_that_a_backup_does_not_know_changes_nothing(store: Store, tmp_path: Path) -> None:
    path, people = store.path, names("last")
    back_up(path, tmp_path / "backup.db")
    come(store, *people)
    store.consolidate(into=2)
    store.forget(people[:1])
    store.close()
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as opened:
        assert opened.count_generations() == (60, 12, 12)
        come(opened, *people)
        assert opened.count_generations() == (60, 12, 12, 11)


def test_a_correction_follows_its_people_into_the_generation_that_stays(store: Store) -> None:
    """A fit may have loaded the old rows before, and begins to train only now."""
    position, person = len(store.history()), in_slice(store, "later", 0)
    store.rectify([person])
    assert store.corrected_since(position) == {Place(3, 0).cell}
    store.consolidate(into=1)
    assert store.corrected_since(position) == {Place(2, 0).cell}


def test_merging_does_what_the_planner_says(store: Store) -> None:
    assert store.consolidate() == 1  # twelve and twelve
    assert store.consolidate() is None


@pytest.mark.parametrize("into", [0, 2, 3])
def test_only_what_is_there_is_merged(store: Store, into: int) -> None:
    with pytest.raises(ConfigurationError, match="has 2 after the first"):
        store.consolidate(into)
    assert len(store.alive()) == len(UNITS) + 6


@pytest.mark.nightly
def test_a_merge_that_is_killed_anywhere_is_whole_or_has_not_been(store: Store, tmp_path: Path) -> None:
    store.close()
    folder = tmp_path / "work"

    def work() -> Iterator[str]:
        with Store.open(folder) as opened:
            opened.consolidate(into=1)
            yield "done"

    for fatal in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(store.path, folder)
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(folder) as opened:
            sizes = opened.count_generations()
            assert sizes in ([(60, 24)] if acknowledged else [(60, 24), (60, 12, 12)]), f"killed before change {fatal}"
            assert {unit.shard for unit in opened.alive()} == set(range(len(sizes) + 1))
            assert opened.verify().passed
        if survived:
            break


def test_the_list_of_generations_is_authenticated(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.path / "ledger.db") as database:
        database.execute("DELETE FROM notes WHERE name = 'generations'")
    with pytest.raises(StoreError, match="the record of its settings or of its fits"):
        Store.open(store.path)
