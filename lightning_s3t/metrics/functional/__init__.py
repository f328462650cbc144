"""The metrics as functions, and the scores that attacks compare."""

from lightning_s3t.metrics.functional.accuracy import accuracy_gap, tug_of_war, unlearning_accuracy
from lightning_s3t.metrics.functional.divergence import retrain_divergence, zero_retrain_forgetting
from lightning_s3t.metrics.functional.epsilon import (
    forgetting_quality,
    unlearning_challenge_score,
    unlearning_epsilon,
    unlearning_epsilon_bound,
)
from lightning_s3t.metrics.functional.extraction import extraction_rate, extraction_rouge
from lightning_s3t.metrics.functional.intervals import clopper_pearson, delong
from lightning_s3t.metrics.functional.likelihood_ratio import (
    likelihood_ratio_attack,
    likelihood_ratio_scores,
    unlearning_likelihood_ratio_attack,
)
from lightning_s3t.metrics.functional.margins import kl_divergence_of_margins
from lightning_s3t.metrics.functional.membership import (
    confidence_membership_inference,
    entropy_membership_inference,
    loss_membership_inference,
    membership_inference,
    modified_entropy_membership_inference,
)
from lightning_s3t.metrics.functional.relearning import anamnesis_index, relearn_time
from lightning_s3t.metrics.functional.robust_membership import robust_membership_inference
from lightning_s3t.metrics.functional.scores import (
    confidence_score,
    entropy_score,
    logit_score,
    loss_score,
    modified_entropy_score,
)

__all__ = [
    "accuracy_gap",
    "anamnesis_index",
    "clopper_pearson",
    "confidence_membership_inference",
    "confidence_score",
    "delong",
    "entropy_membership_inference",
    "entropy_score",
    "extraction_rate",
    "extraction_rouge",
    "forgetting_quality",
    "kl_divergence_of_margins",
    "likelihood_ratio_attack",
    "likelihood_ratio_scores",
    "logit_score",
    "loss_membership_inference",
    "loss_score",
    "membership_inference",
    "modified_entropy_membership_inference",
    "modified_entropy_score",
    "relearn_time",
    "retrain_divergence",
    "robust_membership_inference",
    "tug_of_war",
    "unlearning_accuracy",
    "unlearning_challenge_score",
    "unlearning_epsilon",
    "unlearning_epsilon_bound",
    "unlearning_likelihood_ratio_attack",
    "zero_retrain_forgetting",
]
