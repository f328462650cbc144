"""The plan: partition, sequences, units and the theory of survival. No torch; NumPy and SciPy where they are needed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_s3t.core.subjects import canonical_subject
from lightning_s3t.core.units import Place, UnitId
from lightning_s3t.plan.checks import check_sequences
from lightning_s3t.plan.choice import SequenceChoice
from lightning_s3t.plan.partition import Partition
from lightning_s3t.plan.risk import RiskBands
from lightning_s3t.plan.rotations import cyclic
from lightning_s3t.plan.sequences import PRIOR_PLANNERS, plan_sequences
from lightning_s3t.plan.survival import deletion_rate, harmonic, survivors
from lightning_s3t.plan.units import Sequence, units_of

if TYPE_CHECKING:
    from lightning_s3t.plan.assessment import Assessment, assess
    from lightning_s3t.plan.comparison import Candidate, compare
    from lightning_s3t.plan.cost import Cost, cost_of, optimal_within
    from lightning_s3t.plan.estimate import Estimate
    from lightning_s3t.plan.expectation import expected_survivors, retention_bound
    from lightning_s3t.plan.lifetime import arcane_lifetime, collector, expected_lifetime
    from lightning_s3t.plan.matching import bms
    from lightning_s3t.plan.prior import slice_prior
    from lightning_s3t.plan.sampling import conditional
    from lightning_s3t.plan.search import optimal
    from lightning_s3t.plan.simulation import Moment, Simulation, simulate
    from lightning_s3t.plan.valuation import objective

__all__ = [
    "PRIOR_PLANNERS",
    "Assessment",
    "Candidate",
    "Cost",
    "Estimate",
    "Moment",
    "Partition",
    "Place",
    "RiskBands",
    "Sequence",
    "SequenceChoice",
    "Simulation",
    "UnitId",
    "arcane_lifetime",
    "assess",
    "bms",
    "canonical_subject",
    "check_sequences",
    "collector",
    "compare",
    "conditional",
    "cost_of",
    "cyclic",
    "deletion_rate",
    "expected_lifetime",
    "expected_survivors",
    "harmonic",
    "objective",
    "optimal",
    "optimal_within",
    "plan_sequences",
    "retention_bound",
    "simulate",
    "slice_prior",
    "survivors",
    "units_of",
]

_HOMES = {
    "Assessment": "assessment",
    "Cost": "cost",
    "Estimate": "estimate",
    "Moment": "simulation",
    "Simulation": "simulation",
    "arcane_lifetime": "lifetime",
    "assess": "assessment",
    "bms": "matching",
    "collector": "lifetime",
    "Candidate": "comparison",
    "compare": "comparison",
    "conditional": "sampling",
    "cost_of": "cost",
    "expected_lifetime": "lifetime",
    "expected_survivors": "expectation",
    "objective": "valuation",
    "optimal": "search",
    "optimal_within": "cost",
    "retention_bound": "expectation",
    "simulate": "simulation",
    "slice_prior": "prior",
}


def __getattr__(name: str) -> Any:
    # NumPy and SciPy take most of a second to import: places, units and survivors need neither
    if name in _HOMES:
        return getattr(import_module(f"lightning_s3t.plan.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
