"""Metrics for unlearning, as torchmetrics has them: `update`, `compute`, `plot`, and functions in `functional`.

They do not depend on the rest of this project or on Lightning.
"""

from lightning_s3t.metrics.accuracy import AccuracyGap, TugOfWar, UnlearningAccuracy
from lightning_s3t.metrics.divergence import RetrainDivergence, ZeroRetrainForgetting
from lightning_s3t.metrics.epsilon import ForgettingQuality, UnlearningEpsilon
from lightning_s3t.metrics.extraction import ExtractionRate, ExtractionRouge
from lightning_s3t.metrics.likelihood_ratio import LikelihoodRatioAttack, UnlearningLikelihoodRatioAttack
from lightning_s3t.metrics.margins import KLDivergenceOfMargins
from lightning_s3t.metrics.membership import (
    ConfidenceMembershipInference,
    EntropyMembershipInference,
    LossMembershipInference,
    MembershipInference,
    ModifiedEntropyMembershipInference,
)
from lightning_s3t.metrics.relearning import AnamnesisIndex, RelearnTime
from lightning_s3t.metrics.robust_membership import RobustMembershipInference

__all__ = [
    "AccuracyGap",
    "AnamnesisIndex",
    "ConfidenceMembershipInference",
    "EntropyMembershipInference",
    "ExtractionRate",
    "ExtractionRouge",
    "ForgettingQuality",
    "KLDivergenceOfMargins",
    "LikelihoodRatioAttack",
    "LossMembershipInference",
    "MembershipInference",
    "ModifiedEntropyMembershipInference",
    "RelearnTime",
    "RetrainDivergence",
    "RobustMembershipInference",
    "TugOfWar",
    "UnlearningAccuracy",
    "UnlearningEpsilon",
    "UnlearningLikelihoodRatioAttack",
    "ZeroRetrainForgetting",
]
