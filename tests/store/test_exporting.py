"""Exported copies: files outside of a store that a request names and erases."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_s3t.errors import ConfigurationError, RevokedError, StoreError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import UNITS, build, in_place, session

UNIT = UNITS[0]
ROOT = Path(__file__).parents[2]

KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name

unit, link = UnitId.parse({unit!r}), os.link
def dying(source, target, **options):
    if target.endswith("b.bin"):
        os._exit(9)
    link(source, target, **options)

store = Store.open({store!r})
digests = [store.candidates()[ancestor].snapshot for ancestor in unit.lineage]
os.link = dying
store.export(make_export_name(unit), unit, digests, {{Path({folder!r}) / name: b"secret" for name in ("a.bin", "b.bin")}})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def digests_of(store: Store, unit: UnitId) -> list[str]:
    candidates = store.candidates()
    return [candidates[ancestor].snapshot for ancestor in unit.lineage]


def export(store: Store, unit: UnitId, *paths: Path) -> str:
    name = make_export_name(unit)
    store.export(name, unit, digests_of(store, unit), dict.fromkeys(paths, b"secret"))
    return name


def test_a_request_that_reaches_an_export_names_and_erases_it(path: Path, folder: Path) -> None:
    with Store.open(path) as store:
        name = export(store, UNIT, folder / "a.bin", folder / "a.json")
        assert store.exports() == [name]
        assert sorted(file.name for file in folder.iterdir()) == ["a.bin", "a.json"]
        missed = store.forget([in_place(1 - UNIT.shard, 0)])
        assert missed.exports == ()
        assert (folder / "a.bin").read_bytes() == b"secret"
        receipt = store.forget([in_place(UNIT.shard, UNIT.prefix[0])])
        assert receipt.exports == (name,)
        assert store.exports() == list(folder.iterdir()) == []
        assert receipt.erased_files == len(receipt.revoked) + 2
        assert store.receipts()[-1] == receipt
        assert store.verify().passed


def test_an_export_outlives_its_unit_and_is_reached_all_the_same(path: Path, folder: Path) -> None:
    with Store.open(path) as store:
        name = export(store, UNIT, folder / "a.bin")
        session(store).drop([UNIT])  # stale: new people have come
        assert (folder / "a.bin").exists()
        build(store, UNIT, 7)
        assert store.forget([in_place(UNIT.shard, UNIT.prefix[0])]).exports == (name,)
        assert not (folder / "a.bin").exists()


def test_a_request_before_an_export_is_registered_refuses_it(path: Path, folder: Path) -> None:
    with Store.open(path) as store:
        digests = digests_of(store, UNIT)
        store.forget([in_place(UNIT.shard, UNIT.prefix[0])])
        with pytest.raises(RevokedError, match="Export again"):
            store.export(make_export_name(UNIT), UNIT, digests, {folder / "a.bin": b"secret"})
    assert list(folder.iterdir()) == []


def test_a_request_while_an_export_is_written_leaves_nothing_of_it(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, asked = os.fsync, []

    def fsync_then_forget(descriptor: int) -> None:
        flush(descriptor)
        if not asked:
            asked.append(1)
            with Store.open(path) as other:
                assert len(other.forget([in_place(UNIT.shard, UNIT.prefix[0])]).exports) == 1

    with Store.open(path) as store:
        digests = digests_of(store, UNIT)
        monkeypatch.setattr(os, "fsync", fsync_then_forget)
        with pytest.raises(RevokedError):
            store.export(make_export_name(UNIT), UNIT, digests, {folder / "a.bin": b"x", folder / "b.bin": b"x"})
        assert store.exports() == []
    assert list(folder.iterdir()) == []


def test_what_a_killed_export_leaves_is_erased_by_a_request(path: Path, folder: Path) -> None:
    script = KILLED.format(root=str(ROOT), unit=str(UNIT), store=str(path), folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert len(list(folder.iterdir())) == 2  # one whole, one under its other name
    with Store.open(path) as store:
        receipt = store.forget([in_place(UNIT.shard, UNIT.prefix[0])])
    assert len(receipt.exports) == 1
    assert list(folder.iterdir()) == []


def test_a_restored_ledger_erases_the_exports_that_it_knows(path: Path, folder: Path) -> None:
    with Store.open(path) as store:
        export(store, UNIT, folder / "a.bin")
    backup, content = (path / "ledger.db").read_bytes(), (folder / "a.bin").read_bytes()
    with Store.open(path) as store:
        store.forget([in_place(UNIT.shard, UNIT.prefix[0])])
    (folder / "a.bin").write_bytes(content)  # restored too
    (path / "ledger.db").write_bytes(backup)
    with Store.open(path) as store:
        assert store.exports() == []
    assert list(folder.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with Store.open(path) as store:
        digests = digests_of(store, UNIT)
        with monkeypatch.context() as patched:
            patched.setattr(os, "link", full)
            patched.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="No space left"):
                store.export(make_export_name(UNIT), UNIT, digests, {folder / "a.bin": b"secret"})
        assert store.exports() == list(folder.iterdir()) == []


@pytest.mark.parametrize("place", ["already exists", "is inside the store"])
def test_an_export_takes_no_place_that_is_taken(path: Path, folder: Path, place: str) -> None:
    target = folder / "a.bin" if place == "already exists" else path / "a.bin"
    if place == "already exists":
        target.write_bytes(b"mine")
    with Store.open(path) as store:
        with pytest.raises(ConfigurationError, match=place):
            export(store, UNIT, target)
        assert store.exports() == []
    assert not target.exists() or target.read_bytes() == b"mine"


def test_what_somebody_puts_at_the_place_of_an_export_meanwhile_stays(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def fsync_then_write(descriptor: int) -> None:
        flush(descriptor)
        (folder / "b.bin").write_bytes(b"mine")

    with Store.open(path) as store:
        digests = digests_of(store, UNIT)
        monkeypatch.setattr(os, "fsync", fsync_then_write)
        with pytest.raises(StoreError, match=r"b\.bin"):
            store.export(make_export_name(UNIT), UNIT, digests, {folder / "a.bin": b"x", folder / "b.bin": b"x"})
        monkeypatch.setattr(os, "fsync", flush)
        assert store.exports() == []
    Store.open(path).close()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"b.bin": b"mine"}


@pytest.mark.nightly
def test_an_export_that_is_killed_anywhere_is_erased_by_a_request(path: Path, folder: Path, tmp_path: Path) -> None:
    kept = Path(shutil.copytree(path, tmp_path / "kept"))

    def work() -> Iterator[str]:
        with Store.open(path) as store:
            yield export(store, UNIT, folder / "a.bin", folder / "b.bin")

    for fatal in itertools.count(1):
        for place, origin in ((path, kept), (folder, None)):
            shutil.rmtree(place)
            shutil.copytree(origin, place) if origin else place.mkdir()
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(path) as store:
            receipt = store.forget([in_place(UNIT.shard, UNIT.prefix[0])])
            assert not acknowledged or list(receipt.exports) == acknowledged
            assert store.verify().passed
        left = list(folder.iterdir())
        # one that is killed before it is registered has made names, and nothing in them
        assert not any(file.read_bytes() for file in left), f"killed before change {fatal}: {left}"
        if survived:
            break
    assert fatal > 10, "the kills went past what they should hit"


@pytest.mark.parametrize("rotated", [False, True])
def test_a_store_opens_whose_export_was_erased_by_a_restriction_that_is_over(
    path: Path, folder: Path, rotated: bool
) -> None:
    with Store.open(path) as store:
        name = export(store, UNIT, folder / "a.bin")
        if rotated:
            store.rotate_key()
        assert store.restrict([in_place(0, 0)]).exports == (name,)
        store.release([in_place(0, 0)])
        if rotated:
            store.rotate_key()
    with Store.open(path) as store:
        assert not store.exports()
        assert store.verify().passed
        kept = export(store, UNIT, folder / "b.bin")
        assert store.forget([in_place(0, 0)]).exports == (kept,)
