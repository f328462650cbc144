"""A model that has memorised digits, one that was retrained without them, and what the metrics say of both."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_s3t import metrics
from lightning_s3t.metrics.functional import logit_score


class Digits(NamedTuple):
    """Rows that are asked to be forgotten, rows that stay, and rows that nothing is trained on, with a fifth of labels wrong."""

    forgotten: tuple[Tensor, Tensor]
    retained: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Digits:
    draw = torch.Generator().manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=draw)
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    # what cannot be learnt from others has to be memorised
    wrong = torch.rand(len(y), generator=draw) < 0.2
    y = torch.where(wrong, (y + torch.randint(1, 10, y.shape, generator=draw)) % 10, y)
    return Digits((x[:200], y[:200]), (x[200:600], y[200:600]), (x[600:1400], y[600:1400]))


def _train(*parts: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def original(digits: Digits) -> nn.Module:
    return _train(digits.forgotten, digits.retained, seed=0)


@pytest.fixture(scope="module")
def retrained(digits: Digits) -> list[nn.Module]:
    return [_train(digits.retained, seed=seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    "attack",
    [
        metrics.LossMembershipInference,
        metrics.ConfidenceMembershipInference,
        metrics.EntropyMembershipInference,
        metrics.ModifiedEntropyMembershipInference,
    ],
)
def test_what_is_memorised_is_found_and_what_was_never_seen_is_not(
    digits: Digits, original: nn.Module, retrained: list[nn.Module], attack: type
) -> None:
    labelled = attack in (metrics.LossMembershipInference, metrics.ModifiedEntropyMembershipInference)
    found = []
    for model in (original, retrained[0]):
        metric = attack(max_fpr=0.1)
        for (x, y), is_member in ((digits.forgotten, True), (digits.test, False)):
            metric.update(model(x), y, is_member) if labelled else metric.update(model(x), is_member)
        found.append(metric.compute())
    memorised, never_seen = found
    assert memorised["auc_lower"] > 0.55
    assert never_seen["auc_lower"] < 0.5 < never_seen["auc_upper"]
    assert memorised["auc"] > never_seen["auc"] + 0.05


def test_gaps_are_those_of_a_model_that_has_not_forgotten(
    digits: Digits, original: nn.Module, retrained: list[nn.Module]
) -> None:
    gap, war = metrics.AccuracyGap(num_retrained=2), metrics.TugOfWar(num_retrained=2)
    perfect = metrics.TugOfWar(num_retrained=2)
    for rows, (x, y) in digits._asdict().items():
        references = torch.stack([model(x) for model in retrained[:2]])
        for metric in (gap, war):
            metric.update(original(x), references, y, rows)
        perfect.update(retrained[2](x), references, y, rows)
    found = gap.compute()
    assert found["forgotten_gap_lower"] > 0.1
    assert found["retained_gap_lower"] < 0 < found["retained_gap_upper"]
    assert war.compute() < 0.9 < perfect.compute()


def test_answers_of_a_retrained_model_are_nearer(
    digits: Digits, original: nn.Module, retrained: list[nn.Module]
) -> None:
    x, _ = digits.forgotten
    divergence, null = metrics.RetrainDivergence(), metrics.RetrainDivergence()
    divergence.update(original(x), retrained[0](x))
    null.update(retrained[1](x), retrained[0](x))
    assert divergence.compute() > 1.5 * null.compute()


def test_the_robust_attack_needs_two_reference_models(
    digits: Digits, original: nn.Module, retrained: list[nn.Module]
) -> None:
    def answers(model: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        probabilities = [logit_score(one(part[0]), part[1]).sigmoid() for one in (model, *retrained[1:])]
        return probabilities[0], torch.stack(probabilities[1:], dim=1)

    areas = []
    for model in (original, retrained[0]):
        metric = metrics.RobustMembershipInference(max_fpr=0.1)
        x, y = digits.test
        metric.update(*answers(model, digits.forgotten), is_member=True)
        metric.update(*answers(model, (x[:400], y[:400])), is_member=False)
        metric.update(*answers(model, (x[400:], y[400:])), is_member=None)
        areas.append(metric.compute())
    assert areas[0]["auc_lower"] > 0.6
    assert areas[1]["auc_lower"] < 0.5 < areas[1]["auc_upper"]
