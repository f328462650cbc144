"""The closed-form head, against the same computed from the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.store.heads.feature_sums import FeatureRows, FeatureSums
from lightning_s3t.tuning.ridge import PENALTIES, normalise, round_features, solve_head

ROWS, WIDTH, CLASSES = 400, 12, 3
PART = FloorPart(layer="head", width=WIDTH, outputs=CLASSES, bits=8, target_step=0.01)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=generator) * 1.5
    return centres[labels] + torch.randn(ROWS, WIDTH, generator=generator), labels


def sums_of(features: Tensor, targets: Tensor, task: str, part: FloorPart = PART) -> FeatureSums:
    sums = FeatureSums(part, task)  # type: ignore[arg-type]
    sums.add(FeatureRows(round_features(features, part.limit), targets.int()))
    return sums


def test_the_head_is_the_ridge_regression_of_the_rows(data: tuple[Tensor, Tensor]) -> None:
    features, labels = data
    head = solve_head(sums_of(features, labels, "multiclass"))
    design = round_features(features, PART.limit).double().numpy() / (PART.limit / 4)
    targets = np.eye(CLASSES)[labels.numpy()]
    centred, mean = design - design.mean(0), targets.mean(0)
    penalty = head.penalty * (design**2).sum() / WIDTH
    weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(WIDTH), centred.T @ (targets - mean))
    temperature = 3 * float(head.error.mean())
    np.testing.assert_allclose(head.weight.numpy().T * temperature, weight, atol=1e-5)
    bias = mean - design.mean(0) @ weight
    np.testing.assert_allclose(head.bias.numpy() * temperature, bias, atol=1e-5)


def test_the_error_is_generalised_cross_validation(data: tuple[Tensor, Tensor]) -> None:
    features, labels = data
    head = solve_head(sums_of(features, labels, "multiclass"))
    design = round_features(features, PART.limit).double().numpy() / (PART.limit / 4)
    design, unit = np.c_[design, np.ones(ROWS)], (design**2).sum() / WIDTH
    targets = np.eye(CLASSES)[labels.numpy()]
    errors = {}
    for candidate in PENALTIES:
        penalties = np.diag([*[candidate * unit] * WIDTH, 0.0])
        hat = design @ np.linalg.solve(design.T @ design + penalties, design.T)
        residual = targets - hat @ targets
        errors[candidate] = (residual**2).mean(0) / (1 - np.trace(hat) / ROWS) ** 2
    best = min(errors, key=lambda candidate: errors[candidate].sum())
    assert head.penalty == best
    np.testing.assert_allclose(head.error.numpy(), errors[best], rtol=1e-6)


def test_it_classifies_and_its_probabilities_are_calibrated(data: tuple[Tensor, Tensor]) -> None:
    features, labels = data
    head = solve_head(sums_of(features[:200], labels[:200], "multiclass"))
    probabilities = head(features[200:]).softmax(-1)
    accuracy = float((probabilities.argmax(-1) == labels[200:]).float().mean())
    assert accuracy > 0.85
    assert abs(float(probabilities.amax(-1).mean()) - accuracy) < 0.1


def test_of_a_regression_the_answers_are_its_numbers(data: tuple[Tensor, Tensor]) -> None:
    features, _ = data
    true = normalise(features) @ torch.linspace(-1, 1, WIDTH)
    part = PART.model_copy(update={"outputs": 1})
    head = solve_head(sums_of(features, (true / part.target_step).round()[:, None], "regression", part))
    assert float((head(features)[:, 0] - true).abs().mean()) < 0.02


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_of_yes_or_no_the_answers_are_logits(data: tuple[Tensor, Tensor], task: str) -> None:
    features, labels = data
    part = PART if task == "multilabel" else PART.model_copy(update={"outputs": 1})
    targets = torch.nn.functional.one_hot(labels, CLASSES)[:, : part.outputs]
    head = solve_head(sums_of(features, targets, task, part))
    answers = head(features)
    assert answers.shape == (ROWS, part.outputs)
    assert float(((answers > 0) == targets.bool()).float().mean()) > 0.85


def test_without_any_row_there_is_an_answer() -> None:
    head = solve_head(FeatureSums(PART, "multiclass"))
    assert head(torch.randn(2, WIDTH)).isfinite().all()


def test_fewer_rows_than_features_have_an_answer(data: tuple[Tensor, Tensor]) -> None:
    features, labels = data
    head = solve_head(sums_of(features[:4], labels[:4], "multiclass"))
    assert head(features).isfinite().all()


def test_what_is_made_of_a_row_depends_on_that_row_alone() -> None:
    features = torch.randn(5, WIDTH) * torch.tensor([1e-6, 1.0, 1e6, 3.0, 0.0])[:, None]
    whole = round_features(features, 127)
    assert torch.cat([round_features(row[None], 127) for row in features]).equal(whole)
    assert int(whole[:4].abs().amax(-1).min()) > 20  # whatever the scale
