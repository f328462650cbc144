"""The plan: partition, sequences, units and the theory of survival. Pure Python."""

from lightning_s3t.plan.partition import Partition, Place, canonical_subject
from lightning_s3t.plan.sequences import check_sequences, cyclic, plan_sequences
from lightning_s3t.plan.survival import deletion_rate, harmonic, survivors
from lightning_s3t.plan.units import Sequence, UnitId, units_of

__all__ = [
    "Partition",
    "Place",
    "Sequence",
    "UnitId",
    "canonical_subject",
    "check_sequences",
    "cyclic",
    "deletion_rate",
    "harmonic",
    "plan_sequences",
    "survivors",
    "units_of",
]
