"""Each metric with two batches, for what all metrics have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_s3t import metrics
from lightning_s3t.metrics.metric import UnlearningMetric

_draw = torch.Generator().manual_seed(0)


class Case(NamedTuple):
    """A metric, and the arguments of two updates."""

    make: Callable[[], UnlearningMetric]
    batches: tuple[tuple, tuple]


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_draw)


def _classes(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, shape, generator=_draw)


def _members(rows: int) -> Tensor:
    return torch.arange(rows) % 2 == 0


def _shadows() -> tuple:
    return _normal(6), _normal(6, 8), (torch.arange(8) % 2).expand(6, 8), _members(6)


def _probabilities(is_member: Tensor | None) -> tuple:
    return torch.rand(6, generator=_draw), torch.rand(6, 2, generator=_draw), is_member


CASES = {
    "AccuracyGap": Case(
        lambda: metrics.AccuracyGap(num_retrained=2),
        ((_classes(6), _classes(2, 6), _classes(6), "test"), (_classes(4), _classes(2, 4), _classes(4), "forgotten")),
    ),
    "AnamnesisIndex": Case(
        lambda: metrics.AnamnesisIndex(0.9),
        tuple((torch.linspace(0, 1, n), torch.linspace(0, 0.9, n + 2)) for n in (5, 8)),
    ),
    "ConfidenceMembershipInference": Case(
        lambda: metrics.ConfidenceMembershipInference(0.5), tuple((_normal(6, 3), _members(6)) for _ in range(2))
    ),
    "EntropyMembershipInference": Case(
        lambda: metrics.EntropyMembershipInference(0.5), tuple((_normal(6, 3), _members(6)) for _ in range(2))
    ),
    "ExtractionRate": Case(metrics.ExtractionRate, tuple((_classes(9, 2), _classes(9, 2)) for _ in range(2))),
    "ExtractionRouge": Case(metrics.ExtractionRouge, ((["a b", "c"], ["a c", "c"]), (["d e f"], ["d f"]))),
    "ForgettingQuality": Case(metrics.ForgettingQuality, tuple((_normal(n, 20), _normal(n, 20)) for n in (3, 4))),
    "KLDivergenceOfMargins": Case(
        metrics.KLDivergenceOfMargins, tuple((_normal(n, 20), _normal(n, 20)) for n in (3, 4))
    ),
    "LikelihoodRatioAttack": Case(lambda: metrics.LikelihoodRatioAttack(max_fpr=0.5), (_shadows(), _shadows())),
    "LossMembershipInference": Case(
        lambda: metrics.LossMembershipInference(0.5), tuple((_normal(6, 3), _classes(6), _members(6)) for _ in range(2))
    ),
    "MembershipInference": Case(
        lambda: metrics.MembershipInference(0.5), tuple((_normal(6), _members(6)) for _ in range(2))
    ),
    "ModifiedEntropyMembershipInference": Case(
        lambda: metrics.ModifiedEntropyMembershipInference(0.5),
        tuple((_normal(6, 3), _classes(6), _members(6)) for _ in range(2)),
    ),
    "RelearnTime": Case(lambda: metrics.RelearnTime(0.9), tuple((torch.linspace(0, 1, n),) for n in (5, 8))),
    "RetrainDivergence": Case(metrics.RetrainDivergence, tuple((_normal(n, 3), _normal(n, 3)) for n in (3, 4))),
    "RobustMembershipInference": Case(
        lambda: metrics.RobustMembershipInference(max_fpr=0.5), (_probabilities(_members(6)), _probabilities(None))
    ),
    "TugOfWar": Case(
        lambda: metrics.TugOfWar(num_retrained=2),
        ((_classes(6), _classes(2, 6), _classes(6), "test"), (_classes(4), _classes(2, 4), _classes(4), "forgotten")),
    ),
    "UnlearningAccuracy": Case(
        metrics.UnlearningAccuracy, ((_classes(6), _classes(6), "test"), (_classes(4), _classes(4), "forgotten"))
    ),
    "UnlearningEpsilon": Case(metrics.UnlearningEpsilon, tuple((_normal(n, 20), _normal(n, 20)) for n in (3, 4))),
    "UnlearningLikelihoodRatioAttack": Case(
        lambda: metrics.UnlearningLikelihoodRatioAttack(max_fpr=0.5, num_bootstraps=20),
        tuple((_normal(n, 8), _normal(n, 10)) for n in (3, 4)),
    ),
    "ZeroRetrainForgetting": Case(metrics.ZeroRetrainForgetting, tuple((_normal(n, 3), _normal(n, 3)) for n in (3, 4))),
}


def values(result: Tensor | dict[str, Tensor]) -> dict[str, float]:
    """What a metric gave, as numbers."""
    return {name: float(value) for name, value in (result if isinstance(result, dict) else {"": result}).items()}
