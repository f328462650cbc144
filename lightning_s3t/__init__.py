"""Exact machine unlearning for any LightningModule: one callback trains by slices, one call forgets."""

from lightning_s3t.callbacks import S3T, DeletionHook, ProvenanceRecorder, SliceUnfreezing
from lightning_s3t.module import S3TModule
from lightning_s3t.store import Receipt, Store
from lightning_s3t.tuning import LayerTable, describe_layers

__all__ = [
    "S3T",
    "DeletionHook",
    "LayerTable",
    "ProvenanceRecorder",
    "Receipt",
    "S3TModule",
    "SliceUnfreezing",
    "Store",
    "describe_layers",
]
