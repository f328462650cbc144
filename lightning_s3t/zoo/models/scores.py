"""Metrics of classifiers and of regressions, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchmetrics import (
    Accuracy,
    F1Score,
    MatthewsCorrCoef,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)

from lightning_s3t.errors import ConfigurationError

Score = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
REGRESSION = ("pearson", "spearman")


def make_scores(names: Sequence[Score], num_classes: int, part: str) -> MetricCollection:
    """Make metrics that take `answers(logits)` and labels.

    "f1" is that of class 1 where there are two classes, and the mean over the classes where there are more.

    Args:
        names: The names of the metrics.
        num_classes: Number of classes; 1 for a regression.
        part: "val" or "test", the prefix of their names.

    Raises:
        ConfigurationError: A metric is unknown or does not fit the number of classes.

    Example:
        >>> import torch
        >>> scores = make_scores(["accuracy"], num_classes=2, part="val")
        >>> scores(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]))
        {'val/accuracy': tensor(0.7500)}
    """
    found: dict[str, Metric | MetricCollection] = {name: _make(name, num_classes) for name in names}
    return MetricCollection(found, prefix=f"{part}/")


def answers(logits: Tensor) -> Tensor:
    """Return the class of each row, or its number for a regression.

    Args:
        logits: `[rows, classes]`, or `[rows, 1]`.
    """
    return logits.argmax(-1) if logits.shape[-1] > 1 else logits[..., 0]


def _make(name: str, num_classes: int) -> Metric:
    if name not in ("accuracy", "f1", "matthews", *REGRESSION):
        raise ConfigurationError(
            f"Expected `metrics` to be of accuracy, f1, matthews, pearson, spearman, got {name!r}."
        )
    if (name in REGRESSION) != (num_classes == 1):
        raise ConfigurationError(
            f"The metric {name!r} does not fit num_classes={num_classes}. Expected pearson or spearman for one "
            "number per row (num_classes=1), and accuracy, f1 or matthews for two classes or more."
        )
    if name == "pearson":
        return PearsonCorrCoef()
    if name == "spearman":
        return SpearmanCorrCoef()
    if name == "accuracy":
        return Accuracy(task="multiclass", num_classes=num_classes)
    if name == "matthews":
        return MatthewsCorrCoef(task="multiclass", num_classes=num_classes)
    if num_classes == 2:
        return F1Score(task="binary")
    return F1Score(task="multiclass", num_classes=num_classes, average="macro")
