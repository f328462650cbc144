"""A store whose snapshots are encrypted: it is what any other is, and a deleted key makes every copy of one unreadable."""

from __future__ import annotations

import builtins
import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError, DamagedError, StoreError, StoreMismatchError
from lightning_s3t.store import Store
from lightning_s3t.store.snapshots import encrypted as module
from lightning_s3t.store.snapshots.encrypted import decrypt, encrypt
from lightning_s3t.store.snapshots.keys import VARIABLE
from tests.object_storage import shared_storage
from tests.postgres_server import shared_server
from tests.store.backups import back_up
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, in_place, session
from tests.store.test_floor import add as add_floor
from tests.store.test_floor import assert_same, rows_without, sums_of
from tests.store.test_postgres_store import filled, life
from tests.tiers import in_tier, nightly_except

ANN, BOB, EVE = in_place(0, 0), in_place(1, 0), in_place(1, 1)
KEY, DIGEST = b"k" * 32, "ab" * 32
HEADER = b"safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def store(path: Path, keys: Path) -> Iterator[Store]:
    with filled(path, None, keys=keys) as made:
        yield made


def stems(folder: Path) -> set[str]:
    """The digests that files in a folder are named by."""
    return {found.stem for found in folder.iterdir() if "store.json" not in found.name}


def check(path: Path, keys: Path) -> None:
    """Every snapshot has its key, every key its snapshot, and nothing else is there."""
    with Store.open(path) as store:
        assert store.verify().passed, store.verify().problems
        needed = {record.snapshot for record in store.alive().values()} | {s.digest for s in store.heads().values()}
        needed |= {one.entry.digest for one in store._ledger.aside()}
    assert stems(keys) == stems(path / "snapshots") == needed


# what a store with keys is


@pytest.mark.parametrize("kind", nightly_except(["folder", "bucket"], "folder"))
def test_a_store_with_keys_lives_as_one_without_does(kind: str, tmp_path: Path, path: Path, keys: Path) -> None:
    address = shared_server().new_address() if kind == "bucket" else None
    place = f"s3://{shared_storage().new_bucket('Enabled')}/churn" if kind == "bucket" else None

    def seen(steps: list[Any]) -> list[Any]:  # encrypted snapshots are longer
        return [
            [one, two, [replace(receipt, erased_bytes=0) for receipt in three], *rest]
            for one, two, three, *rest in steps
        ]

    (tmp_path / "other").mkdir()
    assert seen(life(path, address, place, keys)) == seen(life(tmp_path / "other" / "store", None))
    if kind == "folder":
        check(path, keys)


def test_nothing_that_is_kept_can_be_read_without_its_key(store: Store, path: Path, keys: Path) -> None:
    add_floor(store)
    plain = {store._backend.snapshots.get(record.snapshot, "")[:200] for record in store.alive().values()}
    plain.add(store._backend.snapshots.get(store.heads()["pretrained"].digest, "")[:200])
    assert len(plain) == len(UNITS) + 1
    files = [found.read_bytes() for found in (path / "snapshots").iterdir()]
    assert len(files) == len(plain)
    assert not any(text[start : start + 16] in file for text in plain for file in files for start in range(0, 100, 4))
    check(path, keys)
    assert all(found.stat().st_mode & 0o077 == 0 for found in [keys, *keys.iterdir()])


def test_a_backup_of_what_a_request_has_revoked_cannot_be_read(store: Store, path: Path, keys: Path) -> None:
    gone = {unit: record.snapshot for unit, record in store.alive().items() if "0/0" in unit.cells}
    shutil.copytree(path / "snapshots", path.parent / "backup")
    assert len(gone) < len(store.alive())
    store.forget([ANN])
    assert stems(keys) == stems(path.parent / "backup") - set(gone.values())
    for digest in gone.values():
        shutil.copy(path.parent / "backup" / f"{digest}.safetensors", path / "snapshots")
        with pytest.raises(DamagedError, match="key of the snapshot of unit x is missing"):
            store._backend.snapshots.get(digest, "unit x")


def test_a_request_overwrites_a_key_before_it_removes_the_file(store: Store, path: Path, keys: Path) -> None:
    digest = store.alive()[UNITS[0]].snapshot
    (path.parent / "link").hardlink_to(keys / f"{digest}.key")
    store.forget([ANN])
    assert (path.parent / "link").read_bytes() == bytes(32)


def test_equal_snapshots_share_a_key_until_the_last_is_revoked(store: Store, path: Path, keys: Path) -> None:
    one, two = UNITS[0], next(unit for unit in UNITS if unit.shard == 1)
    store.forget([ANN, BOB])
    build(store, one, 5.0)
    build(store, two, 5.0)
    assert store.alive()[one].snapshot == store.alive()[two].snapshot
    store.forget([in_place(0, 0, 1)])
    assert store.load(two)["w"].tolist() == [5.0] * 4
    check(path, keys)


def test_sums_of_a_floor_are_encrypted_and_replaced_with_each_request(store: Store, path: Path, keys: Path) -> None:
    add_floor(store)
    before = store.heads()["pretrained"].digest
    store.forget([ANN])
    assert before not in stems(keys)
    assert_same(store.load_head(), sums_of(rows_without(ANN)))
    check(path, keys)


def test_what_is_set_aside_keeps_its_key(store: Store, path: Path, keys: Path) -> None:
    store.restrict([BOB])
    check(path, keys)
    store.release([BOB])
    assert len(store.alive()) == len(UNITS)
    store.rotate_key()
    check(path, keys)


# what is missing or damaged


def test_a_missing_key_costs_its_unit_and_no_more(store: Store, path: Path, keys: Path) -> None:
    unit = UNITS[-1]
    (keys / f"{store.alive()[unit].snapshot}.key").unlink()
    with pytest.raises(DamagedError, match=r"key of the snapshot of unit .* is missing"):
        store.load(unit)
    assert [str(one) for one in store.verify().damaged] == [str(unit)]
    store.take_out_damaged()
    assert unit not in store.alive()
    build(store, unit, 9.0)
    check(path, keys)


def test_a_key_that_a_backup_brings_back_is_deleted_when_the_store_is_opened(
    store: Store, path: Path, keys: Path
) -> None:
    shutil.copytree(keys, path.parent / "backup")
    store.forget([ANN])
    store.close()
    shutil.copytree(path.parent / "backup", keys, dirs_exist_ok=True)
    check(path, keys)


def test_another_snapshots_key_or_contents_are_told(store: Store, path: Path, keys: Path) -> None:
    one, two = (store.alive()[unit].snapshot for unit in (UNITS[0], UNITS[-1]))
    shutil.copy(path / "snapshots" / f"{two}.safetensors", path / "snapshots" / f"{one}.safetensors")
    with pytest.raises(DamagedError, match="cannot be decrypted"):
        store.load(UNITS[0])
    shutil.copy(keys / f"{two}.key", keys / f"{one}.key")  # with the key too: the digest differs
    with pytest.raises(DamagedError, match="cannot be decrypted"):
        store.load(UNITS[0])


@pytest.mark.parametrize("what", ["away", "unmarked", "empty", "another store's"])
def test_a_folder_of_keys_that_is_away_discards_no_unit(what: str, store: Store, path: Path, keys: Path) -> None:
    if what == "away":
        keys.rename(path.parent / "unmounted")
    if what == "unmarked":
        (keys / "store.json").unlink()
    if what == "empty":
        for digest in stems(keys):
            (keys / f"{digest}.key").unlink()
        session(store).save_base({"w": torch.ones(2)})
        (keys / f"{store._ledger.notes('base')['base']}.key").unlink()
    if what == "another store's":
        (keys / "store.json").write_text('{"store": "other"}')
    with pytest.raises(StoreError, match=r"folder of the keys|belong to another store"):
        store.verify()
    if what in ("away", "empty"):
        with pytest.raises(StoreError, match="folder of the keys"):
            store.take_out_damaged()
    assert len(store._ledger.digests()) == len(UNITS)
    if what != "empty":
        with pytest.raises(StoreError, match=r"folder of the keys|belong to another store"):
            Store.open(path)


def test_a_request_while_the_keys_are_away_is_carried_out_and_deletes_them_later(
    store: Store, path: Path, keys: Path
) -> None:
    keys.rename(path.parent / "unmounted")
    with pytest.raises(StoreError, match="never serves again, but"):
        store.forget([ANN])
    assert UNITS[0] not in store.alive()
    (path.parent / "unmounted").rename(keys)
    check(path, keys)


def test_a_request_for_rows_of_a_floor_needs_the_keys_and_changes_nothing_without(
    store: Store, path: Path, keys: Path
) -> None:
    add_floor(store)
    keys.rename(path.parent / "unmounted")
    with pytest.raises(StoreError, match="Nothing was changed"):
        store.forget([ANN])
    assert (store.request_number, UNITS[0] in store.alive()) == (0, True)
    (path.parent / "unmounted").rename(keys)
    store.forget([ANN])
    assert_same(store.load_head(), sums_of(rows_without(ANN)))
    check(path, keys)


# where keys may be


@pytest.mark.parametrize("place", ["store/keys", ".", "store", "shared/keys"])
def test_keys_beside_what_they_protect_are_refused(place: str, tmp_path: Path) -> None:
    ledger = "postgresql://nowhere.invalid/ml" if place == "shared/keys" else None
    snapshots = str(tmp_path / "shared") if ledger else None
    with pytest.raises(ConfigurationError, match=r"would be backed up with.*neither inside nor around"):
        Store.create(tmp_path / "store", SETTINGS, ledger=ledger, snapshots=snapshots, keys=tmp_path / place)
    assert not any(tmp_path.iterdir())


def test_keys_in_the_store_are_refused_whatever_leads_there(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "runs")
    for store, keys in (("runs/x/../store", "runs/store/keys"), ("runs/store", "alias/store/keys")):
        with pytest.raises(ConfigurationError, match="would be backed up with"):
            Store.create(tmp_path / store, SETTINGS, keys=tmp_path / keys)
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("place", ["keys", "s3://models/churn", "file://host/keys", ""])
def test_what_is_no_folder_for_keys_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Expected the absolute path of a folder"):
        Store.create(tmp_path / "store", SETTINGS, keys=place)


def test_a_folder_with_something_else_in_it_is_refused(path: Path, keys: Path) -> None:
    keys.mkdir()
    (keys / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match="is not empty"):
        Store.create(path, SETTINGS, keys=keys)


def test_each_store_has_its_own_folder_of_keys(store: Store, tmp_path: Path, keys: Path) -> None:
    with pytest.raises(StoreError, match="Each store needs its own folder for keys"):
        Store.create(tmp_path / "second", SETTINGS, keys=keys)


def test_the_ledger_says_where_the_keys_are(store: Store, path: Path, keys: Path, tmp_path: Path) -> None:
    Store.create(path, SETTINGS, keys=f"file://{keys}").close()
    with pytest.raises(StoreMismatchError, match=r"are in .*keys, not in .*other"):
        Store.create(path, SETTINGS, keys=tmp_path / "other")
    Store.create(tmp_path / "plain", SETTINGS).close()
    with pytest.raises(StoreMismatchError, match="are not encrypted"):
        Store.create(tmp_path / "plain", SETTINGS, keys=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_copy_of_the_folder_cannot_delete_the_keys_of_the_original(
    store: Store, path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    shutil.copytree(path, path.parent / "trial")
    with pytest.raises(StoreError, match=f"trial is a copy of that store.*set {VARIABLE}"):
        Store.open(path.parent / "trial")
    path.rename(path.parent / "moved")
    check(path.parent / "moved", keys)
    with monkeypatch.context() as patched:
        patched.setenv(VARIABLE, str(keys))
        Store.open(path.parent / "trial").close()
    with pytest.raises(StoreError, match="is a copy of that store"):
        Store.open(path.parent / "moved")
    shutil.rmtree(path.parent / "moved")
    check(path.parent / "trial", keys)


def test_a_ledger_that_was_changed_to_have_no_keys_does_not_open(store: Store, path: Path, keys: Path) -> None:
    store.close()
    with sqlite3.connect(path / "ledger.db") as ledger:
        ledger.execute("DELETE FROM notes WHERE name = 'keys'")
    ledger.close()
    with pytest.raises(StoreError, match="the record of its settings"):
        Store.open(path)
    assert len(stems(keys)) == len(UNITS)


def test_without_its_package_the_error_says_what_to_install(
    path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "lightning_s3t.store.snapshots.encrypted":
            raise ImportError("no cryptography")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r'pip install "lightning-s3t\[keys\]"'):
        Store.create(path, SETTINGS, keys=keys)


# copies and drills


@pytest.mark.parametrize("kind", nightly_except(["folder", "bucket"], "folder"))
def test_a_copy_has_keys_of_its_own_and_the_old_ones_are_deleted(
    kind: str, store: Store, path: Path, keys: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {}
    if kind == "bucket":
        place = f"s3://{shared_storage().new_bucket('Enabled')}/churn"
        options = {"ledger": shared_server().new_address(), "snapshots": place}
    else:
        add_floor(store)
    store.forget([ANN])
    old = {key.read_bytes() for key in keys.iterdir()}
    with pytest.raises(ConfigurationError, match=r"are encrypted, and those of the copy would not be.*--keys"):
        store.copy(tmp_path / "there", **options)
    with pytest.raises(ConfigurationError, match=r"is the same folder as .*, which the store .* uses"):
        store.copy(tmp_path / "there", keys=keys, **options)
    before = {unit: record.snapshot for unit, record in store.alive().items()}
    store.copy(tmp_path / "there", keys=tmp_path / "new", **options)
    assert stems(keys) == set()
    with Store.open(tmp_path / "there") as copy:
        assert {unit: record.snapshot for unit, record in copy.alive().items()} == before
        assert copy.verify().passed
        copy.forget([BOB])
        assert copy.verify().passed
        assert not old & {key.read_bytes() for key in (tmp_path / "new").iterdir()}
        assert before[UNITS[-1]] not in stems(tmp_path / "new")


def test_a_store_gets_keys_by_a_copy(tmp_path: Path, path: Path, keys: Path) -> None:
    with filled(tmp_path / "plain", None) as store:
        store.copy(path, keys=keys)
    check(path, keys)


def test_keys_of_a_store_that_was_copied_and_removed_are_deleted(
    store: Store, path: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("lightning_s3t.store.copies.copying.settle", lambda copy: None)  # as if it was killed before
        store.copy(tmp_path / "there", keys=tmp_path / "new")
    assert stems(keys)
    Store.open(tmp_path / "there").close()
    assert not stems(keys)


def test_a_drill_reads_with_the_keys_and_deletes_none(store: Store, path: Path, keys: Path, tmp_path: Path) -> None:
    add_floor(store)
    back_up(path, tmp_path / "backup.db")
    store.forget([ANN])
    before = {key.name: key.read_bytes() for key in keys.iterdir()}
    found = store.drill(tmp_path / "backup.db")
    assert found.passed, found.problems
    assert found.replayed_requests == 1
    assert {key.name: key.read_bytes() for key in keys.iterdir()} == before


# kills


@pytest.mark.parametrize("first", nightly_except(range(1, 6), 3))
def test_a_kill_at_any_step_leaves_no_key_without_its_snapshot(first: int, tmp_path: Path) -> None:
    for fatal in itertools.count(first, in_tier(70, 5)):
        path, keys = tmp_path / str(fatal) / "store", tmp_path / str(fatal) / "keys"

        def work(path: Path = path, keys: Path = keys) -> Iterator[str]:
            with Store.create(path, SETTINGS, keys=keys) as store:
                session(store).register(PEOPLE)
                add_floor(store)
                for number, unit in enumerate(UNITS[:3]):
                    build(store, unit, number)
                yield "built"
                store.forget([ANN])
                yield "forgotten"
                build(store, UNITS[0], 7.0)

        acknowledged, survived = acknowledged_until_killed(work, fatal)
        if acknowledged or (path / "ledger.db").exists():
            with Store.create(path, SETTINGS, keys=keys) as store:
                assert "forgotten" not in acknowledged or store.count_forgotten() == 1
                if store.count_forgotten():
                    assert set(store.alive()) <= {UNITS[0]}, f"killed before change {fatal}"
            check(path, keys)
        if survived:
            break
    assert fatal > 100, "the kills went past what they should hit"


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1, 5))
def test_a_kill_in_a_request_leaves_neither_keys_nor_objects_in_a_bucket(first: int, tmp_path: Path) -> None:
    for fatal in itertools.count(first, 4):
        path, keys = tmp_path / str(fatal) / "store", tmp_path / str(fatal) / "keys"
        bucket = shared_storage().new_bucket("Enabled")
        with filled(path, shared_server().new_address(), f"s3://{bucket}/churn", keys) as store:
            gone = {record.snapshot for unit, record in store.alive().items() if "0/0" in unit.cells}

        def work(path: Path = path) -> Iterator[str]:
            with Store.open(path) as store:
                store.forget([ANN])
            yield "forgotten"

        acknowledged, survived = acknowledged_until_killed(work, fatal)
        assert not (acknowledged and gone & stems(keys))
        with Store.open(path) as store:
            assert store.count_forgotten() or not acknowledged
            store.forget([ANN])
            needed = {record.snapshot for record in store.alive().values()}
            assert not gone & needed
            assert store.verify().passed
        left = {Path(key).stem for key in shared_storage().left(bucket, "churn/snapshots/")}
        assert left == stems(keys) == needed, f"killed before change {fatal}"
        if survived:
            break
    assert fatal > 30, "the kills went past what they should hit"


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1, 9))
def test_a_kill_in_a_copy_leaves_one_that_answers_and_its_keys(first: int, tmp_path: Path) -> None:
    for fatal in itertools.count(first, 8):
        base = tmp_path / str(fatal)
        base.mkdir()
        with Store.create(base / "here", SETTINGS, keys=base / "here-keys") as store:
            session(store).register(PEOPLE)
            for number, unit in enumerate(UNITS[:2]):
                build(store, unit, number)

        def work(base: Path = base) -> Iterator[str]:
            with Store.open(base / "here") as store:
                store.copy(base / "there", keys=base / "there-keys")
            yield "copied"

        _, survived = acknowledged_until_killed(work, fatal)
        try:
            Store.open(base / "there").close()
        except StoreError:
            with Store.open(base / "here") as store:
                assert not (base / "there-keys").exists() or not stems(base / "there-keys")
                store.forget([ANN])
                store.copy(base / "there", keys=base / "there-keys")
        check(base / "there", base / "there-keys")
        assert stems(base / "here-keys") == set()
        if survived:
            break


# the encryption


@given(st.binary(max_size=200), st.integers(1, 70))
def test_what_was_encrypted_comes_back_and_nothing_else(data: bytes, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_CHUNK", chunk)
        sealed = encrypt(KEY, DIGEST, data)
        assert decrypt(KEY, DIGEST, sealed) == data
        wrong = [(b"x" * 32, DIGEST, sealed), (KEY, "cd" * 32, sealed), (KEY, DIGEST, sealed + b"x")]
        wrong += [(KEY, DIGEST, sealed[:end]) for end in range(len(sealed))]  # at the end of a chunk, too
        wrong += [(KEY, DIGEST, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) for at in range(len(sealed))]
        size, head = chunk + 16, 15
        if len(data) > 2 * chunk:
            one, two = sealed[head : head + size], sealed[head + size : head + 2 * size]
            wrong.append((KEY, DIGEST, sealed[:head] + two + one + sealed[head + 2 * size :]))
        for key, digest, other in wrong:
            with pytest.raises(InvalidTag):
                decrypt(key, digest, other)


def test_no_nonce_is_used_twice() -> None:
    assert len({encrypt(KEY, DIGEST, b"the same")[8:15] for _ in range(100)}) == 100
