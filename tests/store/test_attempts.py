"""Attempts: a unit becomes part of the store whole or not at all, and its files go with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_s3t.errors import RevokedError
from lightning_s3t.plan import Partition, Place, UnitId
from lightning_s3t.store import Attempt, Store
from tests.store.people_store import session

SETTINGS = {"partition": {"shards": 1, "slices": 3, "seed": 0}}
PARENT, CHILD, GRANDCHILD = UnitId(0, (0,)), UnitId(0, (0, 1)), UnitId(0, (0, 1, 2))
OTHER = UnitId(0, (2,))
PEOPLE = [f"user-{number}" for number in range(30)]


def people_in(slice_: int) -> list[str]:
    partition = Partition(**SETTINGS["partition"])
    return [person for person in PEOPLE if partition.place(person) == Place(0, slice_)]


def started(store: Store, unit: UnitId, *files: Path, key: str = "key", content: str = "") -> Attempt:
    attempt = session(store).start_unit(unit, key)
    for path in files:
        attempt.register_file(path)
        path.write_text(content or str(unit))
    return attempt


def build(store: Store, unit: UnitId, *files: Path, key: str = "key", number: float = 0) -> None:
    started(store, unit, *files, key=key).commit({str(unit): torch.tensor([number])}, {"unit": str(unit)})


def snapshots(store: Store) -> set[str]:
    return {path.name.removesuffix(".safetensors") for path in (store.path / "snapshots").iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", SETTINGS) as made:
        session(made).register(PEOPLE)
        build(made, PARENT)
        yield made


def test_a_unit_serves_only_after_its_commit(store: Store) -> None:
    attempt = session(store).start_unit(CHILD, "key")
    assert CHILD not in store.alive()
    record = attempt.commit({"w": torch.ones(1)}, {"rows": 3}, score=0.5)
    assert store.alive()[CHILD] == record
    assert (record.key, record.score, record.provenance["rows"]) == ("key", 0.5, 3)


def test_a_record_says_the_same_as_the_store_whatever_its_score(store: Store) -> None:
    for score in (None, 0.0, -1.5, float("inf"), float("nan")):
        record = session(store).start_unit(CHILD, "key").commit({"w": torch.ones(1)}, {}, score)
        assert repr(store.alive()[CHILD]) == repr(record)  # a NaN is unequal to itself


def test_a_snapshot_has_the_name_that_its_bytes_give_it(store: Store) -> None:
    build(store, CHILD)
    for record in store.alive().values():
        path = store.path / "snapshots" / f"{record.snapshot}.safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record.snapshot


def test_provenance_lists_the_files_that_were_written(store: Store, tmp_path: Path) -> None:
    attempt = started(store, CHILD, tmp_path / "b.ckpt", tmp_path / "a.ckpt")
    attempt.register_file(tmp_path / "never written.ckpt")
    files = attempt.commit({}, {}).provenance["files"]
    digest = hashlib.sha256(b"0/0-1").hexdigest()
    assert files == [{"path": str(tmp_path / name), "sha256": digest, "bytes": 5} for name in ("a.ckpt", "b.ckpt")]


def test_a_request_elsewhere_does_not_disturb_an_attempt(store: Store, tmp_path: Path) -> None:
    attempt = started(store, CHILD, tmp_path / "a.ckpt")
    store.forget([people_in(2)[0]])
    attempt.commit({}, {})
    assert CHILD in store.alive()
    assert (tmp_path / "a.ckpt").exists()


def test_a_request_again_for_who_was_forgotten_before_does_not_disturb_an_attempt(store: Store) -> None:
    store.forget([people_in(2)[0]])
    attempt = session(store).start_unit(OTHER, "key")
    store.forget([people_in(2)[0]])
    attempt.commit({}, {})
    assert OTHER in store.alive()


def test_a_request_that_reaches_an_attempt_leaves_no_file_of_it(store: Store, tmp_path: Path) -> None:
    attempt = started(store, OTHER, tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    before = snapshots(store)
    store.forget([people_in(2)[0]])
    attempt.register_file(tmp_path / "c.ckpt")
    (tmp_path / "c.ckpt").write_text("the fit goes on until it sees the request")
    with pytest.raises(RevokedError, match=r"0/2 was revoked while it was trained, and is discarded\. The next fit"):
        attempt.commit({"w": torch.ones(5)}, {})
    assert OTHER not in store.alive()
    assert snapshots(store) == before
    assert list(tmp_path.glob("*.ckpt")) == []


def test_a_refused_attempt_cannot_be_committed_after_all(store: Store) -> None:
    attempt = session(store).start_unit(OTHER, "key")
    store.forget([people_in(2)[0]])
    for _ in range(2):
        with pytest.raises(RevokedError):
            attempt.commit({"w": torch.ones(1)}, {})
    assert OTHER not in store.alive()


def test_a_request_that_revokes_the_parent_keeps_the_child_out(store: Store, tmp_path: Path) -> None:
    build(store, CHILD)
    attempt = started(store, GRANDCHILD, tmp_path / "a.ckpt")
    store.forget([people_in(1)[0]])
    with pytest.raises(RevokedError):
        attempt.commit({}, {})
    assert list(store.alive()) == [PARENT]
    assert not (tmp_path / "a.ckpt").exists()


def test_a_child_without_a_parent_is_not_kept(store: Store) -> None:
    with pytest.raises(RevokedError, match="Unit 0/1, which unit 0/1-2 was trained on top of, no longer exists"):
        session(store).start_unit(UnitId(0, (1, 2)), "key").commit({}, {})


def test_an_abandoned_attempt_leaves_the_older_unit_in_place(store: Store, tmp_path: Path) -> None:
    build(store, CHILD, tmp_path / "old.ckpt", key="old")
    started(store, CHILD, tmp_path / "new.ckpt", key="new").abandon()
    assert store.alive()[CHILD].key == "old"
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["old.ckpt"]
    store.load(CHILD)


def test_a_unit_that_is_trained_again_replaces_the_older_and_its_files(store: Store, tmp_path: Path) -> None:
    build(store, CHILD, tmp_path / "old.ckpt", key="old", number=1)
    old = store.alive()[CHILD].snapshot
    build(store, CHILD, tmp_path / "new.ckpt", key="new", number=2)
    assert store.alive()[CHILD].key == "new"
    assert old not in snapshots(store)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["new.ckpt"]


def test_a_unit_that_is_trained_again_to_the_same_bits_keeps_its_snapshot(store: Store) -> None:
    build(store, CHILD, number=1)
    build(store, CHILD, number=1)
    assert torch.equal(store.load(CHILD)["0/0-1"], torch.tensor([1.0]))


def test_a_unit_that_is_trained_again_may_write_the_same_file_again(store: Store, tmp_path: Path) -> None:
    build(store, CHILD, tmp_path / "last.ckpt", number=1)
    build(store, CHILD, tmp_path / "last.ckpt", number=2)
    assert (tmp_path / "last.ckpt").exists()
    store.forget([people_in(1)[0]])
    assert not (tmp_path / "last.ckpt").exists()


def test_a_file_that_a_later_unit_wrote_over_goes_with_the_later_one(store: Store, tmp_path: Path) -> None:
    build(store, OTHER, tmp_path / "last.ckpt")
    build(store, CHILD, tmp_path / "last.ckpt")
    store.forget([people_in(2)[0]])
    assert (tmp_path / "last.ckpt").read_text() == str(CHILD)
    store.forget([people_in(1)[0]])
    assert not (tmp_path / "last.ckpt").exists()


def test_a_relative_path_is_the_file_that_it_was_then(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    build(store, CHILD, Path("last.ckpt"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.ckpt").write_text("somebody else's")
    store.forget([people_in(1)[0]])
    assert not (tmp_path / "run" / "last.ckpt").exists()
    assert (tmp_path / "last.ckpt").exists()


def test_a_folder_where_a_file_was_is_left(store: Store, tmp_path: Path) -> None:
    build(store, CHILD, tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "last.ckpt" / "thesis.tex").touch()
    store.forget([people_in(1)[0]])
    assert (tmp_path / "last.ckpt" / "thesis.tex").exists()


def test_what_an_attempt_cut_short_wrote_is_erased_when_the_store_is_opened(store: Store, tmp_path: Path) -> None:
    started(store, CHILD, tmp_path / "a.ckpt")
    store.close()
    with Store.open(store.path) as again:
        assert not (tmp_path / "a.ckpt").exists()
        assert list(again.alive()) == [PARENT]


def test_opening_the_store_leaves_a_fit_in_progress_alone(store: Store, tmp_path: Path) -> None:
    with store.building():
        attempt = started(store, CHILD, tmp_path / "a.ckpt")
        half_written = store.path / "snapshots" / f".{'ab' * 32}.safetensors.4711.tmp"
        half_written.touch()
        Store.open(store.path).close()
        assert (tmp_path / "a.ckpt").exists()
        assert half_written.exists()
        attempt.commit({}, {})
    Store.open(store.path).close()
    assert (tmp_path / "a.ckpt").exists()
    assert not half_written.exists()


def test_a_fit_begins_with_what_the_one_before_left_cleared_away(store: Store, tmp_path: Path) -> None:
    started(store, CHILD, tmp_path / "a.ckpt")
    (store.path / "snapshots" / f".{'ab' * 32}.safetensors.4711.tmp").touch()
    with store.building():
        assert not (tmp_path / "a.ckpt").exists()
        assert snapshots(store) == {store.alive()[PARENT].snapshot}


def test_dropping_takes_descendants_and_files_and_forgets_nobody(store: Store, tmp_path: Path) -> None:
    build(store, CHILD, tmp_path / "child.ckpt")
    build(store, GRANDCHILD, tmp_path / "grandchild.ckpt")
    build(store, OTHER, tmp_path / "other.ckpt")
    session(store).drop([CHILD])
    assert list(store.alive()) == [PARENT, OTHER]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["other.ckpt"]
    assert (store.request_number, store.forgotten(PEOPLE)) == (0, set())


def test_dropping_what_is_not_there_changes_nothing(store: Store) -> None:
    session(store).drop([OTHER, GRANDCHILD])
    assert list(store.alive()) == [PARENT]


def test_a_dropped_unit_may_be_trained_again(store: Store) -> None:
    session(store).drop([PARENT])
    build(store, PARENT, key="again")
    assert store.alive()[PARENT].key == "again"


def test_a_damaged_unit_can_be_dropped_and_trained_again(store: Store) -> None:
    (store.path / "snapshots" / f"{store.alive()[PARENT].snapshot}.safetensors").write_bytes(b"damaged")
    session(store).drop([PARENT])
    build(store, PARENT)
    assert torch.equal(store.load(PARENT)["0/0"], torch.zeros(1))


@pytest.mark.parametrize("end", ["abandoned", "committed"])
def test_a_file_registered_too_late_is_refused(path: Path, tmp_path: Path, end: str) -> None:
    with Store.open(path) as store:
        attempt = session(store).start_unit(UnitId(0, (0,)), "key")
        attempt.abandon() if end == "abandoned" else attempt.commit({"w": torch.ones(1)}, {})
        with pytest.raises(RevokedError, match="has ended"):
            attempt.register_file(tmp_path / "late.ckpt")
