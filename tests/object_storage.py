"""An object storage for tests that speaks S3's protocol: moto's server, in this process."""

from __future__ import annotations

import functools
import itertools
import logging
import os
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer


class ObjectStorage:
    """A server of its own. The environment of this process, and of those that it starts, leads to it."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        self._server.start()
        host, port = self._server.get_host_and_port()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._names = itertools.count()

    @functools.cached_property
    def files(self) -> s3fs.S3FileSystem:
        """What an administrator does."""
        return s3fs.S3FileSystem(use_listings_cache=False)

    def call(self, method: str, **arguments: Any) -> Any:
        """Call one of S3's own operations."""
        return self.files.call_s3(method, **arguments)

    def new_bucket(self, versioning: str | None = None, **settings: Any) -> str:
        """Make a bucket; return its name."""
        bucket = f"bucket-{os.getpid()}-{next(self._names)}"
        self.call("create_bucket", Bucket=bucket, **settings)
        if versioning is not None:
            self.call("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": versioning})
        return bucket

    def left(self, bucket: str, prefix: str = "") -> set[str]:
        """The keys of all that a bucket has under a prefix: versions, markers of deletion, uploads that were cut."""
        versions = self.call("list_object_versions", Bucket=bucket, Prefix=prefix)
        uploads = self.call("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        found = [*versions.get("Versions", []), *versions.get("DeleteMarkers", []), *uploads.get("Uploads", [])]
        return {one["Key"] for one in found}


@functools.cache
def shared_storage() -> ObjectStorage:
    """One server for all tests of this process, started when it is first asked for."""
    return ObjectStorage()
