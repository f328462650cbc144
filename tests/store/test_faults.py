"""Faults of the machine: full disks, folders and files that cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, session


def in_child(work: Callable[[], None]) -> int:
    """Run something in a forked process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("limit", [0, 100, 5_000, 20_000])
def test_a_full_disk_loses_nothing(path: Path, limit: int) -> None:

    def forget() -> None:
        with Store.open(path) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(StoreError, match=r"Nothing was changed|is still valid"):
                store.forget(PEOPLE)

    assert in_child(forget) == 0
    with Store.open(path) as store:
        assert store.forgotten(PEOPLE) in (set(), set(PEOPLE))
        assert set(store.alive()) == (set(UNITS) if not store.request_number else set())
        assert store.verify().passed
        store.forget(PEOPLE)
        assert not store.alive()


@pytest.mark.parametrize("limit", [0, 50])
def test_a_full_disk_keeps_no_half_snapshot(path: Path, limit: int) -> None:

    def commit() -> None:
        with Store.open(path) as store:
            attempt = session(store).start_unit(UnitId(0, (2,)), "key")
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(StoreError, match="Nothing was changed"):
                attempt.commit({"w": build_tensor()}, {})

    assert in_child(commit) == 0
    with Store.open(path) as store:
        assert set(store.alive()) == set(UNITS)
        assert store.verify().passed


def build_tensor():  # type: ignore[no-untyped-def]
    import torch

    return torch.ones(10_000)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become somebody who may not write")
def test_a_folder_that_cannot_be_written_is_an_error_of_ours(path: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)

    def as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(StoreError, match=r"cannot be (read or )?written by this process"):
            Store.open(path)
        with pytest.raises(StoreError, match="ermission denied"):
            Store.create(path.parent / "another", SETTINGS)

    assert in_child(as_nobody) == 0
    with Store.open(path) as store:
        assert store.verify().passed


def test_what_was_revoked_is_erased_although_the_journal_cannot_be_written(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
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
