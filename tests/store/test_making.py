"""Making a store: cut short anywhere, it can be made again."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.ledgers.sqlite import SqliteLedger
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 1, "slices": 1, "seed": 0}}
UNIT = UnitId(0, (0,))


def assert_usable(store: Store) -> None:
    session(store).register(["ann"])
    session(store).start_unit(UNIT, "key").commit({"w": torch.ones(1)}, {})
    assert store.forget(["ann"]).revoked == ("0/0",)


def made_at(path: Path) -> Iterator[str]:
    with Store.create(path, SETTINGS) as store:
        yield store.subject_hashes(["ann"])["ann"]


@pytest.mark.nightly
def test_a_making_that_is_killed_anywhere_can_be_done_again(tmp_path: Path) -> None:
    for fatal in itertools.count(1):
        path = tmp_path / str(fatal)
        acknowledged, survived = acknowledged_until_killed(lambda path=path: made_at(path), fatal)  # type: ignore[misc]
        if path.exists():
            with suppress(StoreError):  # half a store is no store, or it is whole
                Store.open(path).close()
        with Store.create(path, SETTINGS) as store:
            assert not acknowledged or acknowledged == [store.subject_hashes(["ann"])["ann"]]
            assert store.settings == SETTINGS
            assert_usable(store)
        if survived:
            break
    assert fatal > 15, "the kills went past what they should hit"


@pytest.mark.nightly
def test_what_a_making_that_was_killed_had_half_written_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for fatal in itertools.count(1):
        _, survived = acknowledged_until_killed(lambda: made_at(path), fatal)
        Store.create(path, SETTINGS).close()
        assert {entry.name for entry in path.iterdir()} <= {
            "ledger.db",
            "journal.jsonl",
            "subject.key",
            "fit.lock",
            "ledger.lock",
            "snapshots",
        }
        shutil.rmtree(path)
        if survived:
            break


def test_a_folder_with_a_key_and_no_ledger_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, SETTINGS).close()
    (path / "ledger.db").unlink()
    with Store.create(path, SETTINGS) as store:
        assert_usable(store)


def test_a_ledger_without_settings_becomes_a_store(tmp_path: Path) -> None:
    SqliteLedger(tmp_path, create=True).close()
    with Store.create(tmp_path, SETTINGS) as store:
        assert store.settings == SETTINGS
        assert_usable(store)


def test_a_ledger_without_settings_is_no_store_to_open(tmp_path: Path) -> None:
    SqliteLedger(tmp_path, create=True).close()
    with pytest.raises(StoreError, match=r"subject\.key|never finished"):
        Store.open(tmp_path)


def test_an_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    with Store.create(tmp_path, SETTINGS) as store:
        assert_usable(store)


def test_a_file_in_the_place_of_the_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("thesis")
    with pytest.raises(StoreError, match="is not a store"):
        Store.create(tmp_path / "store", SETTINGS)
    assert (tmp_path / "store").read_text() == "thesis"


@pytest.mark.parametrize("length", [0, 16, 48])
def test_a_key_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    Store.create(tmp_path / "store", SETTINGS).close()
    (tmp_path / "store" / "subject.key").write_bytes(b"k" * length)
    with pytest.raises(StoreError, match=f"has {length} bytes instead of 32.*Restore it from a backup"):
        Store.open(tmp_path / "store")


def test_opening_does_not_make_anything(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreError, match="There is no store at"):
            Store.open(path)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_store_can_be_opened_any_number_of_times(tmp_path: Path) -> None:
    first = Store.create(tmp_path / "store", SETTINGS)
    with Store.open(tmp_path / "store") as second, Store.create(tmp_path / "store", SETTINGS) as third:
        session(first).register(["ann"])
        assert second.forget(["ann"]).unknown == 0
        assert third.request_number == first.request_number == 1
    first.close()
    first.close()


def test_the_journal_of_a_ledger_that_another_process_is_making_is_no_strangers_file(tmp_path: Path) -> None:
    (tmp_path / "ledger.db-journal").touch()
    with Store.create(tmp_path, SETTINGS) as store:
        assert store.request_number == 0
