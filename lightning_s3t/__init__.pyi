from .auditing import audit
from .callbacks import S3T, DeletionHook, ProvenanceRecorder, SliceUnfreezing
from .callbacks.audited import AuditReport
from .module import S3TModule
from .store import Receipt, Store
from .tuning import LayerTable, describe_layers

__all__ = [
    "S3T",
    "AuditReport",
    "DeletionHook",
    "LayerTable",
    "ProvenanceRecorder",
    "Receipt",
    "S3TModule",
    "SliceUnfreezing",
    "Store",
    "audit",
    "describe_layers",
]
