"""Faults of the machine: random kills, full disks, folders that cannot be written, many processes at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import RevokedError, S3TError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.people_store import PARTITION, PEOPLE, SETTINGS, UNITS, build, in_place, make

KILLS = 200


def in_child(work: Callable[[], None]) -> int:
    """Runs something in a forked process; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forget_and_rebuild(path: Path, acknowledgements: Path, seed: int) -> None:
    """Lives on the store as a service and its fits do; notes who was forgotten once that was answered."""
    draw = random.Random(seed)
    with Store.open(path) as store, acknowledgements.open("a") as file:
        while True:
            person = draw.choice(PEOPLE)
            store.forget([person])
            print(person, file=file, flush=True)
            with store.fit_lock():
                for unit in UNITS:
                    if unit not in store.alive() and (unit.parent is None or unit.parent in store.alive()):
                        build(store, unit, draw.random(), path.parent / f"{draw.randrange(3)}.ckpt")
            if draw.random() < 0.1:
                store.rotate_key()


def test_kills_at_random_times_lose_no_answered_request_and_bring_no_unit_back(tmp_path: Path) -> None:
    path, answered = tmp_path / "store", tmp_path / "answered"
    make(path).close()
    answered.touch()
    draw = random.Random(0)
    for number in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                forget_and_rebuild(path, answered, number)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the child failed by itself"
        with Store.open(path) as store:
            gone = set(answered.read_text().split())
            assert gone <= store.forgotten(PEOPLE)
            found = store.verify()
            assert found.passed, found.problems
            for unit in store.alive():
                store.load(unit)
    assert len(gone) > 10, "the kills came before anything was done"


def write_for_a_while(path: Path, people: list[str], number: int) -> None:
    with Store.open(path) as store:
        for person in people:
            store.forget([person])
            if number == 0:
                store.rotate_key() if person == people[0] else None


def read_for_a_while(path: Path, until: float) -> None:
    with Store.open(path) as store:
        while time.monotonic() < until:
            forgotten = store.forgotten(PEOPLE)
            places = {PARTITION.place(person) for person in forgotten}
            for unit in UNITS:
                try:
                    store.load(unit)
                except RevokedError:
                    continue
                reached = [place for place in places if unit.reached_by(place)]
                assert not reached, f"unit {unit} was loaded after {reached} were forgotten"


def test_two_writers_and_four_readers_agree(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make(path).close()
    context = multiprocessing.get_context("fork")
    until = time.monotonic() + 3
    writers = [
        context.Process(target=write_for_a_while, args=(path, PEOPLE[number:40:2], number)) for number in range(2)
    ]
    readers = [context.Process(target=read_for_a_while, args=(path, until)) for _ in range(4)]
    for process in [*readers, *writers]:
        process.start()
    for process in [*writers, *readers]:
        process.join()
        assert process.exitcode == 0
    with Store.open(path) as store:
        assert store.forgotten(PEOPLE) == set(PEOPLE[:40])
        assert store.request_number == 40
        assert store.verify().passed


@pytest.mark.parametrize("limit", [0, 100, 5_000, 20_000])
def test_a_full_disk_loses_nothing(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "store"
    make(path).close()

    def forget() -> None:
        with Store.open(path) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(StoreError, match=r"nothing was changed|holds all the same"):
                store.forget(PEOPLE)

    assert in_child(forget) == 0
    with Store.open(path) as store:
        assert store.forgotten(PEOPLE) in (set(), set(PEOPLE))
        assert set(store.alive()) == (set(UNITS) if not store.request_number else set())
        assert store.verify().passed
        store.forget(PEOPLE)
        assert not store.alive()


@pytest.mark.parametrize("limit", [0, 50])
def test_a_full_disk_keeps_no_half_snapshot(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "store"
    make(path).close()

    def commit() -> None:
        with Store.open(path) as store:
            attempt = store.start_unit(UnitId(0, (2,)), "key")
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(StoreError, match="nothing was changed"):
                attempt.commit({"w": build_tensor()}, {})

    assert in_child(commit) == 0
    with Store.open(path) as store:
        assert set(store.alive()) == set(UNITS)
        assert store.verify().passed


def build_tensor():  # type: ignore[no-untyped-def]
    import torch

    return torch.ones(10_000)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become somebody who may not write")
def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make(path).close()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)

    def as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(StoreError, match=r"ermission denied|readonly"):
            Store.open(path)
        with pytest.raises(StoreError, match="ermission denied"):
            Store.create(path.parent / "another", SETTINGS)

    assert in_child(as_nobody) == 0
    with Store.open(path) as store:
        assert store.verify().passed


ids = st.one_of(
    st.text(min_size=1).filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)),
    st.sampled_from(
        ["'; DROP TABLE tombstones; --", "../../etc/passwd", "a/b\\c", "\0", "\n", "%s", "é", "e\u0301", "x" * 100_000]
    ),
    st.integers(-(10**30), 10**30),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(ids, min_size=1, max_size=5))
def test_any_id_is_forgotten_and_found_again(tmp_path_factory: pytest.TempPathFactory, people: list[str | int]) -> None:
    with make(tmp_path_factory.mktemp("ids") / "store") as store:
        receipt = store.forget(people, strict=False)
        assert receipt.subjects == len({str(person) for person in people})
        assert store.forgotten(map(str, people)) == set(map(str, people))
        assert store.verify().passed


@pytest.mark.parametrize("name", ["ledger.db", "subject.key", "journal.jsonl"])
@settings(deadline=None, max_examples=40)
@given(noise=st.binary(max_size=100), where=st.floats(0, 1), keep=st.booleans())
def test_any_file_of_the_store_may_be_anything(
    tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes, where: float, keep: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "store"
    with make(path) as store:
        store.forget([in_place(0, 0)])
    data = (path / name).read_bytes()
    start = int(where * len(data))
    (path / name).write_bytes(data[:start] + noise + (data[start + len(noise) :] if keep else b""))
    try:
        with Store.open(path) as store:
            store.verify()
            for unit in store.alive():
                assert 0 not in unit.prefix or unit.shard != 0
                store.load(unit)
            store.forget([in_place(1, 1)], strict=False)
    except S3TError:
        pass
    shutil.rmtree(path)


def test_what_was_revoked_is_erased_although_the_journal_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with make(path) as store:
        shutil.move(path / "journal.jsonl", tmp_path / "journal.jsonl")
        (path / "journal.jsonl").mkdir()
        with pytest.raises(StoreError, match="Request 1 is carried out"):
            store.forget(PEOPLE)
        assert not list((path / "snapshots").iterdir())
    (path / "journal.jsonl").rmdir()
    shutil.move(tmp_path / "journal.jsonl", path / "journal.jsonl")
    with Store.open(path) as store:
        assert store.verify().passed
        assert store.receipts()[0].erased_files == len(UNITS)


def test_a_bit_that_flips_in_the_settings_closes_the_store(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        connection = store._ledger.connection
        connection.execute(
            "UPDATE meta SET value = replace(value, '\"seed\": 0', '\"seed\": 1') WHERE name = 'settings'"
        )
    with pytest.raises(StoreError, match=r"settings .* are not what was written"):
        Store.open(tmp_path / "store")
