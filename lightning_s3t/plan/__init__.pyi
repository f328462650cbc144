from .build_order import order_by_worth
from .comparison import PlannerResult, compare
from .cost import Cost, cost_of
from .estimate import Estimate
from .families import check_sequences
from .growth import merge_from
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
from .theory.endurance import Endurance, requests_until
from .theory.expectation import expected_survivors, retention_bound
from .theory.lifetime import arcane_lifetime, collector, expected_lifetime
from .theory.rotations import limit_share, rotation_share
from .theory.simulation import Moment, Simulation, simulate
from .units import Place, SliceSequence, UnitId, units_of
from .upkeep.choices import cheapest, frontier, steady_states
from .upkeep.scenarios import SCENARIOS, Scenario
from .upkeep.steady_state import SteadyState, Upkeep, steady_state
from .worth import DATA, PAPER_CURVES, Worth

__all__ = [
    "DATA",
    "PAPER_CURVES",
    "PRIOR_PLANNERS",
    "SCENARIOS",
    "Assessment",
    "Cost",
    "DataMode",
    "Endurance",
    "EpochRule",
    "Estimate",
    "Moment",
    "Partition",
    "Place",
    "PlanProblem",
    "PlannerName",
    "PlannerResult",
    "RiskBands",
    "Scenario",
    "SequenceChoice",
    "Simulation",
    "SliceSequence",
    "SteadyState",
    "UnitId",
    "Upkeep",
    "Worth",
    "arcane_lifetime",
    "assess",
    "bms",
    "canonical_subject",
    "cheapest",
    "check_sequences",
    "collector",
    "compare",
    "conditional",
    "cost_of",
    "cyclic",
    "deletion_rate",
    "expected_lifetime",
    "expected_survivors",
    "frontier",
    "harmonic",
    "limit_share",
    "merge_from",
    "objective",
    "optimal",
    "optimal_within",
    "order_by_worth",
    "plan_sequences",
    "requests_until",
    "retention_bound",
    "rotation_share",
    "simulate",
    "slice_prior",
    "steady_state",
    "steady_states",
    "survivors",
    "units_of",
]
