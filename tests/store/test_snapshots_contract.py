"""The contract of a place for snapshots, which every one keeps."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lightning_s3t.errors import DamagedError
from lightning_s3t.store.snapshots.encrypted import EncryptedSnapshots
from lightning_s3t.store.snapshots.snapshots import Snapshots
from tests.store.backends import SNAPSHOTS
from tests.tiers import nightly_except

DATA = b"tensors, as it were"
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.fixture(params=nightly_except(SNAPSHOTS, "folder", "shared folder", "bucket", "encrypted folder"))
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    return SNAPSHOTS[request.param](tmp_path)


def added(snapshots: Snapshots) -> int:
    """How many bytes longer a snapshot is when it is encrypted."""
    return 8 + 7 + 16 if isinstance(snapshots, EncryptedSnapshots) else 0


def test_what_was_put_comes_back_under_its_digest(snapshots: Snapshots) -> None:
    snapshots.put(DIGEST, DATA)
    assert snapshots.get(DIGEST, "unit 0/0") == DATA
    assert snapshots.is_whole(DIGEST)
    assert snapshots.names() == {snapshots.name(DIGEST)}
    assert snapshots.size(snapshots.name(DIGEST)) == len(DATA) + added(snapshots)


def test_equal_bytes_are_there_once(snapshots: Snapshots) -> None:
    snapshots.put(DIGEST, DATA)
    snapshots.put(DIGEST, DATA)
    assert len(snapshots.names()) == 1


def test_what_is_missing_is_told(snapshots: Snapshots) -> None:
    snapshots.put(DIGEST, DATA)
    assert not snapshots.is_whole(OTHER)
    assert snapshots.size(snapshots.name(OTHER)) is None
    with pytest.raises(DamagedError, match="snapshot of unit 0/1 is missing"):
        snapshots.get(OTHER, "unit 0/1")


def test_what_is_something_else_is_told(snapshots: Snapshots) -> None:
    snapshots.put(OTHER, DATA)
    assert not snapshots.is_whole(OTHER)
    with pytest.raises(DamagedError, match="snapshot of unit 0/1 is damaged"):
        snapshots.get(OTHER, "unit 0/1")


def test_what_was_damaged_is_put_again(snapshots: Snapshots) -> None:
    snapshots.put(OTHER, DATA)
    snapshots.put(OTHER, b"other")
    assert snapshots.get(OTHER, "unit 0/1") == b"other"


def test_no_other_names_are_looked_for_or_deleted(snapshots: Snapshots) -> None:
    strange = [f"../{DIGEST}.safetensors", "store.json", f"snapshots/../{DIGEST}.safetensors", "snapshots/"]
    assert snapshots.owned(strange) == set()
    assert snapshots.delete(strange) == {}
    assert not snapshots.is_whole("../store")
    with pytest.raises(DamagedError, match="instead of a digest"):
        snapshots.get("../store", "unit 0/1")


def test_many_are_sized_and_deleted_at_once(snapshots: Snapshots) -> None:
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(60)]
    for number, digest in enumerate(digests[:3]):
        snapshots.put(digest, bytes([number]))
    names = [snapshots.name(digest) for digest in digests]
    size = 1 + added(snapshots)
    assert snapshots.sizes(names) == {name: size if name in names[:3] else None for name in names}
    assert snapshots.delete(names) == {}
    assert snapshots.names() == set()


def test_what_is_deleted_is_gone_and_what_was_gone_is_passed_over(snapshots: Snapshots) -> None:
    snapshots.put(DIGEST, DATA)
    snapshots.put(OTHER, b"other")
    assert snapshots.delete([snapshots.name(DIGEST), snapshots.name("ab" * 32)]) == {}
    assert snapshots.names() == {snapshots.name(OTHER)}
    assert snapshots.get(OTHER, "unit 0/1") == b"other"
