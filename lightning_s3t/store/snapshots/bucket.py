"""Snapshots in a bucket of an object storage that speaks S3's protocol."""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError
from typing_extensions import override

from lightning_s3t.errors import DamagedError, StoreError
from lightning_s3t.store.snapshots.marker import MARKER
from lightning_s3t.store.snapshots.snapshots import NOT_SERVED, SnapshotPlace

_PROBE = "probe-"
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}  # seconds
_FEW = 50  # objects: to look for more, the whole listing is read
_MOST = 1000  # that S3 deletes in one call
_ROUNDS = 3  # rounds of deleting listed objects, until the listing is empty
_SOFT_DELETING = "googleapis.com"
_ABSENT = frozenset(
    {
        "ObjectLockConfigurationNotFoundError",
        "ReplicationConfigurationNotFoundError",
        "NotImplemented",  # an S3-compatible object storage without this feature
        "MethodNotAllowed",
    }
)


class _Version(NamedTuple):
    """One version of an object, or a marker that it was deleted."""

    key: str
    id: str
    size: int | None  # of the version that reads return; None for others, and for markers


class SnapshotBucket(SnapshotPlace):
    """Snapshots as objects under a prefix of a bucket, which only one store uses.

    An upload exists completely or not at all. Deleting removes every version and every interrupted upload of an object,
    and verifies the result.

    Args:
        place: "s3://bucket/prefix".
    """

    is_remote = True

    def __init__(self, place: str) -> None:
        self._place = place
        self._bucket, _, prefix = place.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    @override
    def put(self, digest: str, data: bytes) -> None:
        path = f"{self._bucket}/{self._key(self.name(digest))}"
        try:
            with _as_os_errors():
                try:
                    self._files.pipe_file(path, data, mode="create")
                except OSError as error:
                    if isinstance(error, FileExistsError) or _code(error) == "PreconditionFailed":
                        if self.is_whole(digest):
                            return
                    elif _code(error) != "NotImplemented":
                        raise
                    self._files.pipe_file(path, data)  # named by its digest: overwriting loses nothing
        except OSError as error:
            raise self._not_written(digest, error) from error

    @override
    def write(self, digest: str, data: bytes) -> None:
        try:
            with _as_os_errors():
                self._files.pipe_file(f"{self._bucket}/{self._key(self.name(digest))}", data)
        except OSError as error:
            raise self._not_written(digest, error) from error

    @override
    def read(self, digest: str, what: str) -> bytes:
        self.check_digest(digest, what)
        data = self._read(self.name(digest))
        if data is None:
            raise DamagedError(f"The snapshot of {what} is missing: {self.location(digest)}. {NOT_SERVED}")
        return data

    @override
    def location(self, digest: str) -> str:
        return f"{self._place}/{self.name(digest)}"

    @override
    def is_whole(self, digest: str) -> bool:
        if not self.is_digest(digest):
            return False
        data = self._read(self.name(digest))
        return data is not None and hashlib.sha256(data).hexdigest() == digest

    @override
    def check_place(self) -> None:
        if self._marker() is None:
            raise StoreError(
                f"The location of the snapshots, {self._place}, is empty: its {MARKER} is missing. Expected the "
                "objects that the store has put there. No unit is discarded because of this."
            )

    @override
    def names(self) -> set[str]:
        folder = self._key(self.name("")).rpartition("/")[0] + "/"
        with self._store_errors():
            keys = {found.key for found in self._versions(folder)} | {key for key, _ in self._uploads(folder)}
        names = [key.removeprefix(self._prefix) for key in keys]
        return self.owned(names)

    @override
    def size(self, name: str) -> int | None:
        with self._store_errors():
            return next((found.size for found in self._versions_of([self._key(name)]) if found.size is not None), None)

    @override
    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        keys = {self._key(name): name for name in names}
        sizes: dict[str, int | None] = dict.fromkeys(keys.values())
        try:
            found = self._versions_of(keys)
        except OSError:
            return sizes
        return sizes | {keys[one.key]: one.size for one in found if one.size is not None}

    @override
    def delete(self, names: Iterable[str]) -> dict[str, OSError]:
        keys = {self._key(name): name for name in self.owned(names)}
        try:
            failed = self._delete(keys)
        except OSError as error:
            return dict.fromkeys(keys.values(), error)
        return {keys[key]: error for key, error in failed.items()}

    def check_erasable(self, probe: bool) -> None:
        """Raise an error for a bucket that is known to keep deleted objects.

        Args:
            probe: Put an object and delete it, whatever the bucket's settings are.

        Raises:
            StoreError: It keeps deleted objects, or its settings cannot be read.
        """
        endpoint = str(self._files.s3.meta.endpoint_url)
        if (urlsplit(endpoint).hostname or "").endswith(_SOFT_DELETING):
            raise self._refused(
                f"is Google's ({endpoint})",
                "keeps deleted objects for days unless its soft delete is off, and does not show that by S3's protocol",
                "Give a bucket of another object storage, or a shared folder.",
            )
        if self._setting("get_object_lock_configuration", "s3:GetBucketObjectLockConfiguration"):
            raise self._refused("has Object Lock", "keeps objects from being deleted", "Give a bucket without it.")
        rules = self._setting("get_bucket_replication", "s3:GetReplicationConfiguration")
        if any(rule.get("Status") == "Enabled" for rule in rules.get("ReplicationConfiguration", {}).get("Rules", [])):
            advice = "Turn the rules off and erase what they have copied, or use another bucket."
            raise self._refused("is replicated", "leaves copies in other buckets", advice)
        is_versioned = bool(self._setting("get_bucket_versioning", "s3:GetBucketVersioning").get("Status"))
        if not probe and not is_versioned:
            return
        key = f"{self._prefix}{_PROBE}{uuid.uuid4().hex}"
        try:
            self._call("put_object", Key=key, Body=b"")
            # with those of processes that were killed
            failed = self._delete({key, *(found.key for found in self._versions(f"{self._prefix}{_PROBE}"))})
        except OSError as error:
            failed = {key: error}
        for reason in failed.values():
            what = "keeps versions" if is_versioned else "cannot be written and cleared by this process"
            raise self._refused(
                f"{what} ({reason.strerror or reason})",
                "would keep deleted objects",
                "Expected permission to put objects, to list their versions and uploads, and to delete all of them: "
                "s3:PutObject, s3:GetObject, s3:ListBucket, s3:ListBucketVersions, s3:DeleteObject, "
                "s3:DeleteObjectVersion, s3:ListBucketMultipartUploads, s3:AbortMultipartUpload, and no MFA Delete. "
                f"If {key} exists, it is an empty test object.",
            )

    def claim(self, owner: str) -> None:
        """Make the place a store's own.

        Args:
            owner: The token that identifies the store.

        Raises:
            StoreError: It holds something else already.
        """
        if self._marker() is None:
            with self._store_errors():
                keys = (found.key for found in self._versions(self._prefix))
                strange = next((key for key in keys if not key.startswith(f"{self._prefix}{_PROBE}")), None)
                if strange is None:
                    self._call("put_object", Key=self._marker_key, Body=json.dumps({"store": owner}).encode())
            if strange is not None:
                raise StoreError(
                    f"{self._place} is not empty: it has {strange!a}. Expected a prefix that only this store uses."
                )
        self.check_owner(owner)

    def check_owner(self, owner: str) -> None:
        """Check that the place is a store's own.

        Args:
            owner: The token that identifies the store.

        Raises:
            StoreError: It is missing, or another store's.
        """
        self.check_place()
        if self._marker() != {"store": owner}:
            raise StoreError(
                f"The snapshots at {self._place} belong to another store. Each store needs its own prefix: use another."
            )

    @property
    def _files(self) -> s3fs.S3FileSystem:
        # fsspec keeps one for each thread of each process: connections do not survive a fork
        return s3fs.S3FileSystem(use_listings_cache=False, config_kwargs=_TIMEOUTS)

    @property
    def _marker_key(self) -> str:
        return f"{self._prefix}{MARKER}"

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _marker(self) -> Any:
        with self._store_errors():
            try:
                text = self._files.cat_file(f"{self._bucket}/{self._marker_key}")
            except FileNotFoundError:
                return None
        try:
            return json.loads(text)
        except ValueError:
            return {}

    def _read(self, name: str) -> bytes | None:
        with self._store_errors():
            try:
                data: bytes = self._files.cat_file(f"{self._bucket}/{self._key(name)}")
                return data
            except FileNotFoundError:
                pass
        self.check_place()  # a bucket that is away looks the same
        return None

    def _delete(self, keys: Collection[str]) -> dict[str, OSError]:
        """Delete all versions and interrupted uploads of objects; return those that still exist."""
        for key, upload in self._uploads_of(keys):
            try:
                self._call("abort_multipart_upload", Key=key, UploadId=upload)
            except FileNotFoundError:  # it has ended in the meantime
                continue
        errors: dict[str, OSError] = {}
        for _ in range(_ROUNDS):
            if not (there := self._versions_of(keys)):
                return {}
            left = iter(there)
            while chunk := list(islice(left, _MOST)):
                objects = [{"Key": found.key, "VersionId": found.id} for found in chunk]
                answer = self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
                for one in answer.get("Errors", []):
                    errors[one["Key"]] = OSError(errno.EIO, f"{one.get('Code')}: {one.get('Message')}")
        still = OSError(errno.EBUSY, "it is still listed after it was deleted")
        return {found.key: errors.get(found.key, still) for found in self._versions_of(keys)}

    def _versions_of(self, keys: Collection[str]) -> list[_Version]:
        if len(keys) > _FEW:
            wanted = set(keys)
            return [found for found in self._versions(self._prefix) if found.key in wanted]
        return [found for key in keys for found in self._versions(key) if found.key == key]

    def _versions(self, prefix: str) -> Iterator[_Version]:
        for page in self._pages("list_object_versions", prefix, "VersionIdMarker"):
            for found in page.get("Versions", []):
                yield _Version(found["Key"], found["VersionId"], found["Size"] if found["IsLatest"] else None)
            for found in page.get("DeleteMarkers", []):
                yield _Version(found["Key"], found["VersionId"], None)

    def _uploads_of(self, keys: Collection[str]) -> list[tuple[str, str]]:
        if not keys:
            return []
        wanted = set(keys)
        return [found for found in self._uploads(self._prefix) if found[0] in wanted]

    def _uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        for page in self._pages("list_multipart_uploads", prefix, "UploadIdMarker"):
            for found in page.get("Uploads", []):
                yield found["Key"], found["UploadId"]

    def _pages(self, method: str, prefix: str, second_marker: str) -> Iterator[Mapping[str, Any]]:
        markers: dict[str, str] = {}
        while True:
            page = self._call(method, Prefix=prefix, **markers)
            yield page
            if not page.get("IsTruncated"):
                return
            markers = {name: page[f"Next{name}"] for name in ("KeyMarker", second_marker) if page.get(f"Next{name}")}

    def _setting(self, method: str, permission: str) -> Mapping[str, Any]:
        """Return a setting of the bucket; nothing if it has none."""
        try:
            return self._call(method)
        except OSError as error:
            if _code(error) in _ABSENT:
                return {}
            if isinstance(error, PermissionError):
                advice = f"Allow {permission}, or give another bucket."
                raise self._refused("does not show its settings", "may keep deleted objects", advice) from error
            raise self._unreachable(error) from error

    def _call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
        with _as_os_errors():
            found: Mapping[str, Any] = self._files.call_s3(method, Bucket=self._bucket, **arguments)
            return found

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            with _as_os_errors():
                yield
        except OSError as error:
            raise self._unreachable(error) from error

    def _not_written(self, digest: str, error: OSError) -> StoreError:
        return StoreError(f"The snapshot {self.location(digest)} could not be written ({error}).")

    def _unreachable(self, error: OSError) -> StoreError:
        return StoreError(
            f"The snapshots at {self._place} cannot be reached ({error.strerror or error}). No unit is discarded "
            "because of this. Check the network, the bucket and the credentials, and try again."
        )

    def _refused(self, what: str, why: str, advice: str) -> StoreError:
        return StoreError(
            f"The bucket {self._bucket} {what}, which {why}: a request could not erase the units that it revokes. "
            f"{advice} Nothing was changed."
        )


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise whatever goes wrong between here and the bucket as an `OSError`."""
    try:
        yield
    except (BotoCoreError, ClientError, HTTPClientError, aiohttp.ClientError, ResponseParserError) as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


def _code(error: OSError) -> str:
    """Return S3's name of an error."""
    cause = error.__cause__
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""
