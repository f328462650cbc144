"""Lightning callbacks: `Unlearning` for any method, `S3T` for its own, and the three callbacks that they build on."""

from lightning_s3t.callbacks.deletion import DeletionHook
from lightning_s3t.callbacks.provenance import ProvenanceRecorder
from lightning_s3t.callbacks.s3t import S3T
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unlearning import Unlearning

__all__ = ["S3T", "DeletionHook", "ProvenanceRecorder", "SliceUnfreezing", "Unlearning"]
