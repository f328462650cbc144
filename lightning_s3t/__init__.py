"""Exact machine unlearning for any LightningModule: one callback trains by slices, one call forgets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_s3t.auditing import audit
    from lightning_s3t.callbacks import S3T, DeletionHook, ProvenanceRecorder, SliceUnfreezing
    from lightning_s3t.callbacks.audited import AuditReport
    from lightning_s3t.serving import EnsemblePredictor
    from lightning_s3t.serving.module import EnsembleModule
    from lightning_s3t.store import Receipt, Store
    from lightning_s3t.tuning import LayerTable, describe_layers

__all__ = [
    "S3T",
    "AuditReport",
    "DeletionHook",
    "EnsembleModule",
    "EnsemblePredictor",
    "LayerTable",
    "ProvenanceRecorder",
    "Receipt",
    "SliceUnfreezing",
    "Store",
    "audit",
    "describe_layers",
]

_HOMES = {
    "AuditReport": "callbacks.audited",
    "S3T": "callbacks",
    "DeletionHook": "callbacks",
    "EnsembleModule": "serving.module",
    "EnsemblePredictor": "serving",
    "LayerTable": "tuning",
    "ProvenanceRecorder": "callbacks",
    "Receipt": "store",
    "SliceUnfreezing": "callbacks",
    "Store": "store",
    "audit": "auditing",
    "describe_layers": "tuning",
}


def __getattr__(name: str) -> Any:
    # Lightning and PEFT take seconds to import: `s3t --help` and the pure-Python plan need neither
    if name in _HOMES:
        return getattr(import_module(f"lightning_s3t.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
