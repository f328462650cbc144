"""Requests: who is asked for, what is counted, what is answered."""

from __future__ import annotations

import gc
import os
import platform
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import DataError, S3TError, UnknownSubjectError
from lightning_s3t.plan import Partition, Place, UnitId, survivors, units_of
from lightning_s3t.store import Receipt, Store
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 2, "slices": 3, "seed": 0}}
PARTITION = Partition(2, 3, 0)
PEOPLE = [f"user-{number}" for number in range(60)]
UNITS = units_of(2, [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
SOON = datetime.now(timezone.utc) + timedelta(hours=1)


def in_place(shard: int, slice_: int) -> list[str]:
    return [person for person in PEOPLE if PARTITION.place(person) == Place(shard, slice_)]


def build(store: Store, unit: UnitId, number: float, *files: Path, score: float | None = None) -> None:
    attempt = session(store).start_unit(unit, f"key-{unit}")
    for path in files:
        attempt.register_file(path)
        path.write_bytes(b"x" * 100)
    attempt.commit({"w": torch.tensor([number])}, {"unit": str(unit)}, score)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    with Store.create(path, SETTINGS) as made:
        session(made).register(PEOPLE)
        for number, unit in enumerate(UNITS):
            build(made, unit, number)
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(template, tmp_path / "store")
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize("places", [[(0, 0)], [(1, 2)], [(0, 1), (1, 0)], [(0, 0), (0, 1), (0, 2)]])
def test_exactly_the_units_that_the_subjects_reached_are_revoked(store: Store, places: list[tuple[int, int]]) -> None:
    receipt = store.forget([in_place(*place)[0] for place in places])
    reached = {unit for unit in UNITS if any(unit.reached_by(Place(*place)) for place in places)}
    assert {UnitId.parse(text) for text in receipt.revoked} == reached
    assert set(store.alive()) == set(UNITS) - reached


def test_a_second_person_of_a_slice_finds_nothing_left_to_revoke(store: Store) -> None:
    first, second = in_place(0, 0)[:2]
    store.forget([first])
    receipt = store.forget([second])
    assert (receipt.revoked, receipt.erased_files, receipt.already_forgotten) == ((), 0, 0)
    assert store.forgotten(PEOPLE) == {first, second}


def test_a_unit_that_was_trained_again_is_revoked_again(store: Store) -> None:
    first, second = in_place(1, 0)[:2]
    store.forget([first])
    build(store, UnitId(1, (0,)), 100)
    assert store.forget([second]).revoked == ("1/0",)


def test_who_is_forgotten_already_does_not_revoke_what_was_trained_without_them(store: Store) -> None:
    person = in_place(1, 0)[0]
    store.forget([person])
    build(store, UnitId(1, (0,)), 100)
    assert store.forget([person]).revoked == ()
    assert UnitId(1, (0,)) in store.alive()


def test_a_subject_named_twice_in_any_spelling_is_one(store: Store) -> None:
    session(store).register(["17"])
    receipt = store.forget([17, "17", np.int64(17), torch.tensor(17)])
    assert (receipt.subjects, receipt.unknown, receipt.already_forgotten) == (1, 0, 0)


def test_new_known_and_unknown_subjects_are_counted_apart(store: Store) -> None:
    store.forget(PEOPLE[:3])
    receipt = store.forget([*PEOPLE[:5], "nobody", "no one"], strict=False)
    assert (receipt.subjects, receipt.already_forgotten, receipt.unknown) == (7, 3, 2)


def test_an_unknown_subject_revokes_what_its_place_reaches_all_the_same(store: Store) -> None:
    stranger = next(f"stranger-{n}" for n in range(100) if PARTITION.place(f"stranger-{n}") == Place(0, 0))
    receipt = store.forget([stranger], strict=False)
    assert set(receipt.revoked) == {str(unit) for unit in UNITS if unit.reached_by(Place(0, 0))}


def test_an_unknown_subject_with_a_tombstone_is_known_afterwards(store: Store) -> None:
    store.forget(["nobody"], strict=False)
    receipt = store.forget(["nobody"])
    assert (receipt.already_forgotten, receipt.unknown) == (1, 0)


def test_a_strict_request_that_is_refused_leaves_no_trace(store: Store) -> None:
    before = store.alive()
    with pytest.raises(UnknownSubjectError):
        store.forget([*PEOPLE, "nobody"])
    assert (store.alive(), store.request_number, store.receipts()) == (before, 0, [])
    assert store.forgotten([*PEOPLE, "nobody"]) == set()


@pytest.mark.parametrize("running", [True, False])
def test_the_garbage_collector_is_left_as_it_was(store: Store, running: bool) -> None:
    was_running = gc.isenabled()
    (gc.enable if running else gc.disable)()
    try:
        store.forget(["user-1"], strict=False)
        with pytest.raises(UnknownSubjectError):
            store.forget(["nobody"])
        assert gc.isenabled() == running
    finally:
        (gc.enable if was_running else gc.disable)()


def test_of_many_unknown_subjects_five_are_shown(store: Store) -> None:
    with pytest.raises(UnknownSubjectError, match=r"'n-0', 'n-1', 'n-2', 'n-3', 'n-4' and 95 more\. .*strict=False"):
        store.forget([f"n-{number}" for number in range(100)])


@pytest.mark.parametrize("subject", [1.5, None, True, ""])
def test_a_request_with_an_id_that_cannot_be_is_refused_whole(store: Store, subject: object) -> None:
    with pytest.raises(DataError):
        store.forget([PEOPLE[0], subject])
    assert (store.request_number, store.forgotten(PEOPLE)) == (0, set())


def test_an_id_that_cannot_be_encoded_is_refused_as_other_wrong_ids_are_or_forgotten(store: Store) -> None:
    name = os.fsdecode(b"scan-\xff.png")
    try:
        session(store).register([name])
        store.forget([name])
    except S3TError:
        assert store.request_number == 0
    else:
        assert store.forgotten([name]) == {name}


def test_a_request_for_nobody_is_refused(store: Store) -> None:
    for ask in (store.forget, lambda nobody: store.schedule(nobody, SOON), store.cancel):
        with pytest.raises(DataError, match="has no ids"):
            ask([])
    assert store.request_number == 0
    assert store.pending() == []


def test_ten_thousand_in_one_request_are_one_receipt(store: Store) -> None:
    many = [f"id-{number}" for number in range(10_000)]
    session(store).register(many)
    receipt = store.forget(iter(many))
    assert (receipt.subjects, receipt.request, len(store.receipts())) == (10_000, 1, 1)
    assert store.forgotten([*many, *PEOPLE]) == set(many)
    assert store.forget(many[:5000]).already_forgotten == 5000


def test_registering_twice_is_registering_once(store: Store) -> None:
    session(store).register(PEOPLE)
    assert store.forget(PEOPLE).unknown == 0


def test_registering_is_whole_or_not_at_all(store: Store) -> None:
    def cut_short() -> Iterator[str]:
        yield "ann"
        raise OSError("the data set went away")

    with pytest.raises(OSError, match="went away"):
        session(store).register(cut_short())
    with pytest.raises(UnknownSubjectError, match="'ann'"):
        store.forget(["ann"])


def test_two_stores_hash_a_subject_differently(store: Store, tmp_path: Path) -> None:
    with Store.create(tmp_path / "other", SETTINGS) as other:
        assert other.subject_hashes(["ann"]) != store.subject_hashes(["ann"])
    with Store.open(store.path) as again:
        assert again.subject_hashes(["ann"]) == store.subject_hashes(["ann"])


def test_a_receipt_counts_the_files_and_bytes_that_went(store: Store, tmp_path: Path) -> None:
    session(store).drop(UNITS)
    build(store, UnitId(0, (0,)), 1, tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    snapshot = next((store.path / "snapshots").iterdir()).stat().st_size
    receipt = store.forget([in_place(0, 0)[0]])
    assert (receipt.erased_files, receipt.erased_bytes) == (3, 200 + snapshot)


def test_a_snapshot_that_two_revoked_units_share_is_counted_once(store: Store) -> None:
    session(store).drop(UNITS)
    build(store, UnitId(0, (0,)), 1)
    build(store, UnitId(1, (0,)), 1)
    assert store.forget([in_place(0, 0)[0], in_place(1, 0)[0]]).erased_files == 1


def test_a_snapshot_that_another_unit_still_needs_is_not_counted(store: Store) -> None:
    session(store).drop(UNITS)
    build(store, UnitId(0, (0,)), 1)
    build(store, UnitId(1, (0,)), 1)
    assert store.forget([in_place(0, 0)[0]]).erased_files == 0
    assert torch.equal(store.load(UnitId(1, (0,)))["w"], torch.tensor([1.0]))


def test_a_file_that_was_gone_before_is_not_counted(store: Store, tmp_path: Path) -> None:
    session(store).drop(UNITS)
    build(store, UnitId(0, (0,)), 1, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").unlink()
    assert store.forget([in_place(0, 0)[0]]).erased_files == 1


def test_a_receipt_names_the_best_survivors_by_their_scores(store: Store) -> None:
    for number, unit in enumerate((UnitId(0, (1, 2)), UnitId(0, (1,)), UnitId(0, (2,)))):
        session(store).drop([unit])
        if unit.parent is None:
            build(store, unit, 50 + number, score=float(number))
    receipt = store.forget([in_place(0, 0)[0], *(in_place(1, slice_)[0] for slice_ in range(3))])
    assert receipt.serving == {"0": "0/2", "1": None}


@pytest.mark.parametrize("slices", [[0], [1], [0, 1], [0, 1, 2]])
def test_a_receipt_says_who_serves_as_the_plan_does(store: Store, slices: list[int]) -> None:
    receipt = store.forget([in_place(0, slice_)[0] for slice_ in slices])
    best = survivors(store.alive())
    assert receipt.serving == {"0": str(best[0]) if 0 in best else None}


def test_a_receipt_has_the_time_in_utc(store: Store) -> None:
    before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    time = datetime.fromisoformat(store.forget([PEOPLE[0]]).time)
    assert time.utcoffset() == timedelta(0)
    assert before <= time <= datetime.now(timezone.utc)


def test_a_receipt_names_the_versions_that_took_part(store: Store) -> None:
    versions = store.forget([PEOPLE[0]]).versions
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == version("torch")


def test_receipts_are_numbered_from_one_and_kept(store: Store) -> None:
    made = [store.forget([person]) for person in PEOPLE[:4]]
    assert [receipt.request for receipt in made] == [1, 2, 3, 4]
    assert store.request_number == 4
    with Store.open(store.path) as again:
        assert again.receipts() == made


NAMES = st.text(st.characters(codec="utf-8"), max_size=5)
RECEIPTS = st.builds(
    Receipt,
    request=st.integers(1),
    time=NAMES,
    subjects=st.integers(0),
    already_forgotten=st.integers(0),
    already_restricted=st.integers(0),
    set_aside_units=st.integers(0),
    returned_units=st.integers(0),
    unknown=st.integers(0),
    request_id=st.none() | NAMES,
    revoked_units=st.integers(0),
    subtracted_rows=st.integers(0),
    erased_files=st.integers(0),
    erased_bytes=st.integers(0),
    missing_files=st.integers(0),
    left_files=st.integers(0),
    versions=st.dictionaries(NAMES, NAMES, max_size=3),
    position=st.integers(1),
    chain=st.from_regex("[0-9a-f]{64}", fullmatch=True),
)


@given(RECEIPTS)
def test_a_receipt_reads_back_as_it_was_written(receipt: Receipt) -> None:
    assert Receipt.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize("subjects", ["user-17", b"17", bytearray(b"17"), 17, None, 3.5, [10**5000], [["a"]]])
def test_what_is_no_collection_of_ids_is_refused_and_nobody_else_is_forgotten(tmp_path: Path, subjects: Any) -> None:
    with Store.create(tmp_path / "store", SETTINGS, register=False) as store:
        with pytest.raises(DataError):
            store.forget(subjects, strict=False)
        with pytest.raises(DataError):
            store.schedule(subjects, SOON, strict=False)
        assert store.request_number == 0
        assert store.pending() == []
