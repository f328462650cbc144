"""Lightning callbacks: S3T, and the three that it is put together from."""

from lightning_s3t.callbacks.deletion import DeletionHook
from lightning_s3t.callbacks.provenance import ProvenanceRecorder
from lightning_s3t.callbacks.s3t import S3T
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing

__all__ = ["S3T", "DeletionHook", "ProvenanceRecorder", "SliceUnfreezing"]
