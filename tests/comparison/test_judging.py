"""From answers to gaps, attacks and intervals, without any training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_s3t.comparison.asking import Call
from lightning_s3t.comparison.judging import Runs, judge
from lightning_s3t.comparison.relearning import relearn
from lightning_s3t.comparison.run import Run
from lightning_s3t.methods import SSD, Retrain, UnlearningMethod

ROWS = 200
ASKED_AT = torch.arange(ROWS) % 10 + 1
AFTER = (0, 10)


def answers(shift: float, seed: int) -> dict[str, Tensor]:
    """Answer to rows that are all alike, but that forgotten rows are known better by a shift."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for requests in AFTER:
        for part in ("test", "retained", "forgotten"):
            scores = torch.randn(ROWS, generator=draw) + (shift if part == "forgotten" else 0)
            found |= {f"{part}/{requests}/scores": scores, f"{part}/{requests}/correct": scores > 0}
    return found


def runs(label: str, method: UnlearningMethod, shift: float, seeds: range) -> Runs:
    found = [Run(label, repr(method), seed, fit_cpu_seconds=2.0, request_seconds=[0.1, 0.3]) for seed in seeds]
    return Runs(label, method, found, [answers(shift, 100 * len(label) + seed) for seed in seeds])


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_knows_forgotten_rows_is_found_and_what_does_not_is_not(seeds: int) -> None:
    reference = runs("retrain", Retrain(), 0.0, range(seeds))
    knows = judge(runs("ssd", SSD(), 2.0, range(seeds)), reference, ASKED_AT, AFTER, thorough=False)
    fresh = judge(reference, reference, ASKED_AT, AFTER, thorough=False)
    for moment in knows.moments:
        assert moment.attack_auc is not None
        assert moment.attack_auc.lower > 0.8
    for moment in fresh.moments:
        assert moment.attack_auc is not None
        assert moment.attack_auc.lower < 0.55
    last = knows.moments[-1]
    assert last.forgotten_gap is not None
    assert last.test_gap is not None
    assert last.forgotten_gap.lower > 0.2
    assert last.test_gap.lower < 0 < last.test_gap.upper


def test_attacks_by_shadow_models_find_what_is_known() -> None:
    reference = runs("retrain", Retrain(), 0.0, range(8))
    knows = judge(runs("ssd", SSD(), 2.0, range(8)), reference, ASKED_AT, AFTER, thorough=True)
    assert knows.u_lira is not None
    assert knows.rmia is not None
    assert knows.u_lira.lower > 0.8
    assert knows.rmia.lower > 0.8


def test_few_seeds_have_no_likelihood_ratio() -> None:
    reference = runs("retrain", Retrain(), 0.0, range(3))
    assert judge(runs("ssd", SSD(), 2.0, range(3)), reference, ASKED_AT, AFTER, thorough=True).u_lira is None


def test_relearning_counts_the_steps_to_the_goal() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(64, 4, generator=draw)
    calls = [Call((part,), {}, (part[:, 0] > 0).long()) for part in features.split(16)]
    known, unknown = nn.Linear(4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        for net, sign in ((known, 1.0), (unknown, -1.0)):
            net.weight.zero_()
            net.bias.zero_()
            net.weight[1, 0] = sign
    assert relearn([known], calls, 1.0, 0.1, 50, seed=0) == (0, True)
    steps, reached = relearn([unknown], calls, 0.95, 0.1, 200, seed=0)
    assert reached
    assert steps > 3
    with torch.no_grad():
        unknown.weight[1, 0] = -100.0
    assert relearn([unknown], calls, 0.95, 0.001, 5, seed=0) == (5, False)
