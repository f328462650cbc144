"""Where people are is a secret of the store: made with its key, never rotated, told to nobody."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_s3t.errors import ConfigurationError, StoreError, StoreMismatchError
from lightning_s3t.plan import Partition, Place
from lightning_s3t.store import Store
from lightning_s3t.store.keys.identities import KEY_VARIABLE
from tests.store.people_store import PEOPLE

SECRET: dict[str, Any] = {"partition": {"shards": 2, "slices": 3, "seed": 0, "kind": "secret"}}
PUBLIC: dict[str, Any] = {"partition": {"shards": 2, "slices": 3, "seed": 0, "kind": "public"}}


def places(store: Store) -> list[Place]:
    return [store.partition.place(person) for person in PEOPLE]


def test_every_store_has_places_of_its_own(tmp_path: Path) -> None:
    with Store.create(tmp_path / "one", SECRET) as one, Store.create(tmp_path / "other", SECRET) as other:
        same = sum(a == b for a, b in zip(places(one), places(other), strict=True))
    assert same < len(PEOPLE) / 2


def test_places_stay_when_the_store_is_copied_opened_again_and_its_key_rotated(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SECRET) as store:
        before = places(store)
        store.rotate_key()
        assert places(store) == before
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    for name in ("store", "copy"):
        with Store.open(tmp_path / name) as opened:
            assert places(opened) == before


def test_a_public_partition_follows_from_the_seed_alone(tmp_path: Path) -> None:
    with Store.create(tmp_path / "one", PUBLIC) as one:
        assert places(one) == [Partition(2, 3, 0).place(person) for person in PEOPLE]


@pytest.mark.parametrize("given", ["key", "environment"])
def test_stores_with_one_key_have_the_same_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    key = os.urandom(32)
    if given == "environment":
        monkeypatch.setenv(KEY_VARIABLE, key.hex())
    with (
        Store.create(tmp_path / "one", SECRET, key=key) as one,
        Store.create(tmp_path / "other", SECRET, key=key) as other,
    ):
        assert places(one) == places(other)


def test_a_store_that_another_process_has_made_with_its_own_key_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", SECRET).close()
    with pytest.raises(StoreError, match="another process created the store first"):
        Store.create(tmp_path / "store", SECRET, key=os.urandom(32))


def test_a_store_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", PUBLIC).close()
    with pytest.raises(StoreMismatchError, match=r"partition.kind: store public, now secret"):
        Store.create(tmp_path / "store", SECRET)


def test_the_secret_is_in_no_file_and_no_text(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SECRET) as store:
        secret = store.partition.secret
        assert secret
        assert "secret" not in repr(store.partition)
        assert store.partition.settings == {**SECRET["partition"], "bands": []}
    contents = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert secret not in contents
    assert secret.hex().encode() not in contents


@pytest.mark.parametrize("key", [b"", b"short", "ab" * 32])
def test_what_is_no_key_is_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        Store.create(tmp_path / "store", SECRET, key=key)
    assert not (tmp_path / "store").exists()
