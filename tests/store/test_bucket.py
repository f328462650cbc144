"""What a bucket can do that a folder cannot: keep what was deleted, be away, fail in the middle."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import s3fs

from lightning_s3t.errors import ConfigurationError, DamagedError, StoreError
from lightning_s3t.store.snapshots.bucket import SnapshotBucket
from lightning_s3t.store.snapshots.place import open_place, parse_place
from lightning_s3t.store.snapshots.snapshots import Snapshots
from tests.object_storage import shared_storage

DATA = b"tensors, as it were"
DIGEST = hashlib.sha256(DATA).hexdigest()
ROLE = "arn:aws:iam::123456789012:role/replication"
Call = Callable[..., Any]


def opened(bucket: str, create: bool = True, owner: str = "store-1") -> Snapshots:
    return open_place(Path("store"), f"s3://{bucket}/churn", owner, create)


@pytest.fixture
def bucket() -> str:
    return shared_storage().new_bucket()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], None]:
    """Has a function decide what becomes of each request that goes to a bucket."""

    def watch(decide: Call) -> None:
        call = s3fs.core._error_wrapper

        async def decided(method: Any, **kwargs: Any) -> Any:
            decide(method.__name__)
            return await call(method, **kwargs)

        monkeypatch.setattr(s3fs.core, "_error_wrapper", decided)

    return watch


def test_a_storage_that_hides_its_soft_delete_is_refused_before_it_is_called(
    bucket: str, watched: Callable[[Call], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    watched(called.append)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.googleapis.com")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match=r"is Google's .* keeps deleted objects for days"):
            opened(bucket)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert called == []


def test_every_version_is_deleted_also_of_what_others_have_deleted() -> None:
    bucket = shared_storage().new_bucket("Enabled")
    snapshots = opened(bucket)
    snapshots.put(DIGEST, b"first")
    snapshots.put(DIGEST, DATA)
    shared_storage().files.rm_file(f"{bucket}/churn/{snapshots.name(DIGEST)}")  # leaves a marker, and the versions
    assert snapshots.names() == {snapshots.name(DIGEST)}
    assert snapshots.delete([snapshots.name(DIGEST)]) == {}
    assert shared_storage().left(bucket) == {"churn/store.json"}


@pytest.mark.parametrize("state", ["Enabled", "Suspended"])
def test_a_bucket_whose_versions_cannot_be_deleted_is_refused(
    state: str, watched: Callable[[Call], None], bucket: str
) -> None:
    opened(bucket)
    versioning = {"Status": state}
    shared_storage().call("put_bucket_versioning", Bucket=bucket, VersioningConfiguration=versioning)

    def decide(method: str) -> None:
        if method == "delete_objects":
            raise PermissionError("Access Denied")

    watched(decide)
    for create in (True, False):
        with pytest.raises(StoreError, match=r"keeps versions \(Access Denied\).*s3:DeleteObjectVersion"):
            opened(bucket, create)


def test_a_bucket_with_object_lock_is_refused() -> None:
    bucket = shared_storage().new_bucket(ObjectLockEnabledForBucket=True)
    with pytest.raises(StoreError, match=r"has Object Lock.*Nothing was changed"):
        opened(bucket)
    assert shared_storage().left(bucket) == set()


def test_a_bucket_that_is_replicated_is_refused_also_later(bucket: str) -> None:
    opened(bucket)
    versioning = {"Status": "Enabled"}
    shared_storage().call("put_bucket_versioning", Bucket=bucket, VersioningConfiguration=versioning)
    target = {"Bucket": f"arn:aws:s3:::{shared_storage().new_bucket('Enabled')}"}
    rule = {"ID": "all", "Status": "Enabled", "Priority": 1, "Filter": {"Prefix": ""}, "Destination": target}
    rule["DeleteMarkerReplication"] = {"Status": "Disabled"}
    rules = {"Role": ROLE, "Rules": [rule]}
    shared_storage().call("put_bucket_replication", Bucket=bucket, ReplicationConfiguration=rules)
    with pytest.raises(StoreError, match="is replicated, which leaves copies in other buckets"):
        opened(bucket, create=False)


@pytest.mark.parametrize(
    ("method", "permission"),
    [
        ("get_bucket_versioning", "s3:GetBucketVersioning"),
        ("get_bucket_replication", "s3:GetReplicationConfiguration"),
        ("get_object_lock_configuration", "s3:GetBucketObjectLockConfiguration"),
    ],
)
def test_a_bucket_that_hides_its_settings_is_refused(
    method: str, permission: str, watched: Callable[[Call], None], bucket: str
) -> None:
    def decide(called: str) -> None:
        if called == method:
            raise PermissionError("Access Denied")

    watched(decide)
    with pytest.raises(StoreError, match=f"does not show its settings.*Allow {permission}"):
        opened(bucket)


@pytest.fixture
def cut_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A storage whose connection breaks in the middle of each answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "200")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"x" * 100)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: Any) -> None:
            pass

    shared_storage()  # for the credentials
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()


def test_a_snapshot_that_is_cut_off_each_time_cannot_be_reached(cut_answers: None) -> None:
    with pytest.raises(StoreError, match=r"cannot be reached .*No unit is discarded"):
        SnapshotBucket("s3://models/churn").get(DIGEST, "unit 0/0")


def test_a_prefix_belongs_to_one_store(bucket: str) -> None:
    opened(bucket).put(DIGEST, DATA)
    for create in (True, False):
        with pytest.raises(StoreError, match="belong to another store"):
            opened(bucket, create, owner="store-2")
    opened(bucket, create=False)


def test_another_programs_prefix_is_left_alone(bucket: str) -> None:
    shared_storage().files.pipe_file(f"{bucket}/churn/thesis.tex", b"text")
    with pytest.raises(StoreError, match=r"is not empty: it has 'churn/thesis.tex'"):
        opened(bucket)
    assert shared_storage().left(bucket) == {"churn/thesis.tex"}


def test_a_bucket_that_is_away_is_no_damage(bucket: str, watched: Callable[[Call], None]) -> None:
    snapshots = opened(bucket)
    snapshots.put(DIGEST, DATA)

    def decide(method: str) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    watched(decide)
    for call in (snapshots.is_whole, lambda digest: snapshots.get(digest, "unit 0/0")):
        with pytest.raises(StoreError, match="No unit is discarded because of this") as raised:
            call(DIGEST)
        assert not isinstance(raised.value, DamagedError)
    with pytest.raises(StoreError):
        snapshots.names()


def test_an_upload_that_was_cut_is_seen_and_deleted(bucket: str) -> None:
    snapshots = opened(bucket)
    key = f"churn/{snapshots.name(DIGEST)}"
    upload = shared_storage().call("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    part = {"Key": key, "UploadId": upload, "PartNumber": 1, "Body": b"x" * 5 * 2**20}
    shared_storage().call("upload_part", Bucket=bucket, **part)
    assert snapshots.names() == {snapshots.name(DIGEST)}
    assert snapshots.delete([snapshots.name(DIGEST)]) == {}
    assert snapshots.names() == set()
    assert shared_storage().left(bucket) == {"churn/store.json"}


@pytest.mark.nightly
def test_a_fault_at_any_call_is_an_error_and_nothing_is_lost_or_left(
    bucket: str, watched: Callable[[Call], None]
) -> None:
    """Each life begins where the fault has left the one before."""
    left = 0

    def decide(method: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(5, "the network is away")

    def life() -> None:
        snapshots = opened(bucket)
        snapshots.put(DIGEST, DATA)
        assert snapshots.is_whole(DIGEST)
        assert snapshots.get(DIGEST, "unit 0/0") == DATA
        failed = snapshots.delete([snapshots.name(DIGEST)])
        assert set(failed) <= {snapshots.name(DIGEST)}
        if failed:
            raise StoreError("not deleted")
        assert snapshots.names() == set()

    watched(decide)
    for fatal in itertools.count(1):
        left = fatal
        try:
            life()
        except StoreError:
            assert left <= 0
        else:
            assert left > 0, f"the fault at call {fatal} made no error"
            break
        left = 0
        life()
        assert shared_storage().left(bucket) == {"churn/store.json"}
    assert fatal > 10, "the faults went past what they should hit"


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://UPPER/x",
        "s3://models/a b",
        "s3://models/../x",
        "models/x",
        "https://x.y/z",
        "gs://models",
        "s3:/a",
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected s3://bucket/prefix"):
        parse_place(text)


def test_a_place_has_one_spelling() -> None:
    assert parse_place("s3://models/churn//") == parse_place("s3://models/churn") == "s3://models/churn"
    assert parse_place("/mnt/a/../shared/") == "/mnt/shared"


def test_a_folder_that_is_not_mounted_is_refused(tmp_path: Path) -> None:
    open_place(tmp_path, str(tmp_path / "shared"), "store-1", create=True)
    (tmp_path / "shared").rename(tmp_path / "away")
    with pytest.raises(StoreError, match=r"has no store.json. If it is on its own disk, mount the disk"):
        open_place(tmp_path, str(tmp_path / "shared"), "store-1")
    (tmp_path / "shared").symlink_to(tmp_path / "away")
    with pytest.raises(StoreError, match="is a symbolic link"):
        open_place(tmp_path, str(tmp_path / "shared"), "store-1")


@pytest.mark.parametrize("kind", ["snapshots", "keys"])
def test_a_folder_whose_marker_was_half_written_by_a_killed_process_is_claimed_again(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / ".store.json.4711.tmp").write_text('{"sto')
    place, keys = (str(folder), None) if kind == "snapshots" else (None, str(folder))
    for _ in range(2):
        open_place(tmp_path, place, "store-1", create=True, keys=keys)
    assert {path.name for path in folder.iterdir()} <= {"store.json", "snapshots"}
    with pytest.raises(StoreError, match="belong to another store"):
        open_place(tmp_path, place, "store-2", create=True, keys=keys)


def test_a_shared_folder_belongs_to_one_store(tmp_path: Path) -> None:
    place = str(tmp_path / "shared")
    open_place(tmp_path, place, "store-1", create=True)
    with pytest.raises(StoreError, match="belong to another store"):
        open_place(tmp_path, place, "store-2", create=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="is not empty"):
        open_place(tmp_path, str(tmp_path / "home"), "store-1", create=True)


def test_the_probe_leaves_nothing(bucket: str) -> None:
    SnapshotBucket(f"s3://{bucket}/churn").check_erasable(probe=True)
    assert shared_storage().left(bucket) == set()
