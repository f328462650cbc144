"""A store whose snapshots lie in a bucket or a shared folder: it is what one in a folder is, and says where they lie."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.errors import ConfigurationError, RevokedError, StoreError, StoreMismatchError
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.store.disk.lock import erasure_lock
from lightning_s3t.store.snapshots.bucket import SnapshotBucket
from tests.object_storage import shared_storage
from tests.postgres_server import shared_server
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place
from tests.store.test_postgres_store import filled, life

ANN, BOB = in_place(0, 0), in_place(1, 0)
REACHED = [unit for unit in UNITS if "0/0" in unit.cells]


@pytest.fixture
def address() -> str:
    return shared_server().new_address()


@pytest.fixture
def bucket() -> str:
    return shared_storage().new_bucket()


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/churn"


def keys(bucket: str) -> set[str]:
    return {Path(key).stem for key in shared_storage().left(bucket, "churn/snapshots/")}


def digests(store: Store) -> set[str]:
    return {record.snapshot for record in store.alive().values()}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["folder", "bucket", "versioned bucket"])
def test_a_store_with_its_snapshots_elsewhere_lives_as_one_in_a_folder_does(
    kind: str, tmp_path: Path, address: str
) -> None:
    versioning = "Enabled" if kind == "versioned bucket" else None
    place = str(tmp_path / "shared")
    if kind != "folder":
        place = f"s3://{shared_storage().new_bucket(versioning)}/churn"
    assert life(tmp_path / "there" / "store", address, place) == life(tmp_path / "here" / "store", None)
    assert not any((tmp_path / "there" / "store" / "snapshots").iterdir())


def test_a_request_erases_in_the_bucket_and_says_how_much(
    tmp_path: Path, address: str, bucket: str, place: str
) -> None:
    with filled(tmp_path / "store", address, place) as store:
        before = digests(store)
        assert keys(bucket) == before
        receipt = store.forget([ANN])
        assert isinstance(receipt, RequestRecord)
        assert keys(bucket) == digests(store) < before
        assert receipt.erased_files == len(before) - len(digests(store))
        assert receipt.erased_bytes > 0
        assert store.verify().passed
    with Store.open(tmp_path / "store") as again:
        assert torch.equal(again.load(UNITS[-1])["w"], torch.full((4,), float(len(UNITS) - 1)))


@pytest.mark.nightly
def test_the_ledger_says_where_the_snapshots_are(tmp_path: Path, address: str, place: str) -> None:
    filled(tmp_path / "store", address, place).close()
    for given in (None, place, f"{place}/"):
        with Store.create(tmp_path / "store", SETTINGS, snapshots=given) as again:
            assert len(again.alive()) == len(UNITS)
    with pytest.raises(StoreMismatchError, match="Leave the argument out"):
        Store.create(tmp_path / "store", SETTINGS, snapshots=str(tmp_path / "shared"))


def test_a_store_with_its_ledger_in_the_folder_has_its_snapshots_there(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigurationError, match="Give `ledger` too"):
        Store.create(tmp_path / "store", SETTINGS, snapshots=place)
    assert not (tmp_path / "store").exists()


@pytest.mark.nightly
def test_a_place_that_is_noted_without_the_stores_key_is_noticed(
    tmp_path: Path, address: str, bucket: str, place: str
) -> None:
    filled(tmp_path / "store", address, place).close()
    schema = address.partition("schema=")[2]
    with shared_server().connect() as connection:
        connection.execute(f"DELETE FROM {schema}.notes WHERE name = 'snapshots'")
    with pytest.raises(StoreError, match="does not match what was written with the store's key"):
        Store.open(tmp_path / "store")
    assert len(keys(bucket)) == len(UNITS)


@pytest.mark.nightly
def test_a_damaged_snapshot_is_taken_out_and_an_unregistered_one_is_named(
    tmp_path: Path, address: str, bucket: str, place: str
) -> None:
    with filled(tmp_path / "store", address, place) as store:
        digest = store.alive()[UNITS[-1]].snapshot
        shared_storage().files.pipe_file(f"{bucket}/churn/snapshots/{digest}.safetensors", b"damaged")
        strange = f"snapshots/{'ab' * 32}.safetensors"
        shared_storage().files.pipe_file(f"{bucket}/churn/{strange}", b"strange")
        found = store.verify()
        assert UNITS[-1] in found.damaged
        assert any(strange in problem for problem in found.problems)


def test_a_bucket_that_is_away_costs_no_unit_and_delays_the_erasure(
    tmp_path: Path, address: str, bucket: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path / "store", address, place) as store:
        with monkeypatch.context() as patched:
            patched.setattr(SnapshotBucket, "_call", away)
            with pytest.raises(StoreError, match=r"never serves again, but .* could not be erased"):
                store.forget([ANN])
        assert not any(unit in store.alive() for unit in REACHED)
        assert keys(bucket) > digests(store)
        with pytest.raises(RevokedError):
            store.load(REACHED[0])
    with Store.open(tmp_path / "store") as store:
        assert keys(bucket) == digests(store)
        assert store.receipts()[0].erased_files == len(REACHED)
        assert store.receipts()[0].erased_bytes > 0


def away(*args: Any, **kwargs: Any) -> None:
    raise OSError(5, "the network is away")


@pytest.mark.nightly
def test_no_writer_waits_while_a_bucket_deletes(
    tmp_path: Path, address: str, bucket: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleting, go_on = threading.Event(), threading.Event()
    delete = SnapshotBucket.delete

    def slow(snapshots: SnapshotBucket, names: Any) -> Any:
        deleting.set()
        assert go_on.wait(60)
        return delete(snapshots, names)

    with filled(tmp_path / "store", address, place) as store:
        monkeypatch.setattr(SnapshotBucket, "delete", slow)
        first = threading.Thread(target=store.forget, args=([ANN],))
        first.start()
        assert deleting.wait(60)
        second = threading.Thread(target=store.forget, args=([BOB],))
        second.start()
        for _ in range(600):  # the revocation does not wait; only its own erasure does
            if store.request_number == 2:
                break
            time.sleep(0.05)
        assert store.request_number == 2
        assert first.is_alive()
        go_on.set()
        first.join()
        second.join()
        assert keys(bucket) == digests(store)
        assert store.verify().passed


def test_a_snapshot_that_is_being_erased_is_put_again_for_a_unit_that_needs_an_equal_one(
    tmp_path: Path, address: str, bucket: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is trained again to the same bits while the old ones, in a request's queue, are being deleted."""
    deleting, go_on, waiting = threading.Event(), threading.Event(), threading.Event()
    delete = SnapshotBucket.delete

    def slow(snapshots: SnapshotBucket, names: Any) -> Any:
        if not deleting.is_set():
            deleting.set()
            assert go_on.wait(60)
        return delete(snapshots, names)

    def watched(folder: Path) -> Any:
        if deleting.is_set():
            waiting.set()
        return erasure_lock(folder)

    with filled(tmp_path / "store", address, place) as store:
        unit, before = REACHED[0], store.alive()[REACHED[0]].snapshot
        monkeypatch.setattr(SnapshotBucket, "delete", slow)
        monkeypatch.setattr("lightning_s3t.store.requests.erasure.erasure_lock", watched)
        first = threading.Thread(target=store.rectify, args=([ANN],))
        first.start()
        assert deleting.wait(60)
        second = threading.Thread(target=build, args=(store, unit, UNITS.index(unit)))
        second.start()
        assert waiting.wait(60)  # for the deletion to end, and not with a unit whose snapshot is about to go
        assert unit not in store.alive()
        go_on.set()
        first.join()
        second.join()
        assert store.alive()[unit].snapshot == before
        store.load(unit)
        assert keys(bucket) == digests(store)


@pytest.mark.nightly
def test_a_unit_that_is_revoked_while_its_snapshot_is_put_leaves_nothing(
    tmp_path: Path, address: str, bucket: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = SnapshotBucket.put
    with filled(tmp_path / "store", address, place) as store:

        def reached_meanwhile(snapshots: SnapshotBucket, digest: str, data: bytes) -> None:
            put(snapshots, digest, data)
            monkeypatch.undo()
            store.forget([ANN])

        monkeypatch.setattr(SnapshotBucket, "put", reached_meanwhile)
        with pytest.raises(RevokedError, match="revoked while it was trained"):
            build(store, REACHED[0], 7.0)
        assert keys(bucket) == digests(store)
        assert store.verify().passed


@pytest.mark.nightly
def test_the_heads_start_lies_there_too(tmp_path: Path, address: str, bucket: str, place: str) -> None:
    with Store.create(tmp_path / "store", SETTINGS, ledger=address, snapshots=place) as store:
        with store.building() as building:
            building.save_base({"w": torch.ones(2)})
        assert len(keys(bucket)) == 1
    with Store.open(tmp_path / "store") as store:
        found = store.load_base()
        assert found is not None
        assert torch.equal(found["w"], torch.ones(2))


class Life:
    """A store in which everything is built, and how it is set back to that."""

    def __init__(self, folder: Path) -> None:
        self.path, self.folder = folder / "store", folder
        self.bucket = shared_storage().new_bucket()
        self.database = f"elsewhere_{folder.name}".replace("-", "_")
        with shared_server().connect() as connection:
            connection.execute(f"CREATE DATABASE {self.database}".encode())
        address = shared_server().address("churn", self.database)
        filled(self.path, address, f"s3://{self.bucket}/churn").close()
        shared_server().copy_database(self.database, f"{self.database}_kept")
        shutil.copytree(self.path, folder / "kept")
        files = shared_storage().files
        self.objects = {key: files.cat_file(f"{self.bucket}/{key}") for key in shared_storage().left(self.bucket)}

    def go_back(self) -> None:
        shared_server().copy_database(f"{self.database}_kept", self.database)
        shutil.copy2(self.folder / "kept" / "journal.jsonl", self.path / "journal.jsonl")
        files = shared_storage().files
        for key in shared_storage().left(self.bucket) - self.objects.keys():
            files.rm_file(f"{self.bucket}/{key}")
        for key, data in self.objects.items():
            files.pipe_file(f"{self.bucket}/{key}", data)


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1, 9))  # in parts, for the time limit of a test
def test_a_kill_before_any_step_leaves_nothing_of_what_is_revoked(
    first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    killed(Life(tmp_path_factory.mktemp("killed")), first, 8)


def killed(life: Life, first: int, every: int) -> None:
    """A request and then a unit, killed before every change to disk, database or bucket."""

    def work() -> Iterator[str]:
        with Store.open(life.path) as store:
            store.forget([ANN], request_id="ticket-7")
            yield "forgotten"
            with store.building():
                build(store, REACHED[0], 99.0)
            yield "built"

    for fatal in itertools.count(first, every):
        life.go_back()
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(life.path) as store:
            assert_nothing_left(store, life.bucket, acknowledged)
            store.forget([ANN], request_id="ticket-7")
            assert store.request_number == 1
            assert_nothing_left(store, life.bucket, ["forgotten"])
            assert store.forgotten(PEOPLE) == {ANN}
            assert store.verify().passed
        if survived:
            break
    assert fatal > 60, "the kills went past what they should hit"


def assert_nothing_left(store: Store, bucket: str, acknowledged: list[str]) -> None:
    """Nothing lies in the bucket but what serves."""
    assert keys(bucket) == digests(store)
    alive = store.alive()
    assert float(store.load(UNITS[-1])["w"][0]) == len(UNITS) - 1
    if "forgotten" in acknowledged:
        assert not any(unit in alive for unit in REACHED if unit != REACHED[0])
        assert REACHED[0] not in alive or float(store.load(REACHED[0])["w"][0]) == 99
    if "built" in acknowledged:
        assert REACHED[0] in alive
