from .comparison import PlannerResult, compare
from .cost import Cost, cost_of
from .estimate import Estimate
from .families import check_sequences
from .objective.assessment import Assessment, assess, objective
from .partition import Partition, canonical_subject
from .planners.conditional import conditional
from .planners.matching import bms
from .planners.optimal import optimal
from .planners.rotations import cyclic
from .planners.within_cost import optimal_within
from .prior import slice_prior
from .problem import PlanProblem
from .risk import RiskBands
from .sequences import PRIOR_PLANNERS, PlannerName, SequenceChoice, plan_sequences
from .stage_rules import DataMode, EpochRule
from .survival import deletion_rate, harmonic, survivors
from .theory.expectation import expected_survivors, retention_bound
from .theory.lifetime import arcane_lifetime, collector, expected_lifetime
from .theory.simulation import Moment, Simulation, simulate
from .units import Place, SliceSequence, UnitId, units_of

__all__ = [
    "PRIOR_PLANNERS",
    "Assessment",
    "Cost",
    "DataMode",
    "EpochRule",
    "Estimate",
    "Moment",
    "Partition",
    "Place",
    "PlanProblem",
    "PlannerName",
    "PlannerResult",
    "RiskBands",
    "SequenceChoice",
    "Simulation",
    "SliceSequence",
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
