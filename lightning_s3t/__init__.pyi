from .auditing import audit
from .callbacks import S3T, DeletionHook, ProvenanceRecorder, SliceUnfreezing, Unlearning
from .comparison import Comparison, compare
from .core.tickets import Ticket
from .engine.package_alias import alias_pytorch_lightning
from .executors.audit_report import AuditReport
from .serving import EnsemblePredictor
from .serving.module import EnsembleModule
from .store import Receipt, Store
from .tuning import LayerTable, describe_layers
from .tuning.floor import Floor

__all__ = [
    "S3T",
    "AuditReport",
    "Comparison",
    "DeletionHook",
    "EnsembleModule",
    "EnsemblePredictor",
    "Floor",
    "LayerTable",
    "ProvenanceRecorder",
    "Receipt",
    "SliceUnfreezing",
    "Store",
    "Ticket",
    "Unlearning",
    "alias_pytorch_lightning",
    "audit",
    "compare",
    "describe_layers",
]
