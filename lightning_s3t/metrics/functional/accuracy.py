"""Accuracy on forgotten, retained and test rows, and its distance to a retrained model's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.intervals import clopper_pearson, normal_quantile
from lightning_s3t.metrics.functional.membership import named_interval
from lightning_s3t.metrics.functional.validation import check_choice, check_confidence_level

ROWS = ("forgotten", "retained", "test")


def correct_rows(name: str, preds: Tensor, target: Tensor) -> Tensor:
    """Returns which rows are right, of shape `(..., N)`, for classes `(..., N)` or scores of classes `(..., N, C)`."""
    if target.ndim != 1:
        raise ConfigurationError(f"Expected argument `target` to have shape `(N,)` but got {tuple(target.shape)}")
    if preds.is_floating_point():
        if preds.isnan().any():
            raise ConfigurationError(f"Expected argument `{name}` to hold no NaN")
        preds = preds.argmax(dim=-1)
    if not preds.ndim or preds.shape[-1] != len(target):
        raise ConfigurationError(
            f"Expected argument `{name}` to hold classes, or scores of classes as floats, for each of {len(target)} "
            f"rows but got shape {tuple(preds.shape)}"
        )
    return preds == target


def unlearning_accuracy(
    forgotten: tuple[Tensor, Tensor],
    retained: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute the accuracy on forgotten, retained and test rows, with Clopper and Pearson's intervals over rows.

    Args:
        forgotten: Predictions (classes of shape `(N,)`, or floats of shape `(N, C)`) and targets of shape `(N,)`.
        retained: The same for rows that stay.
        test: The same for rows that no model has seen.
        confidence_level: Share of intervals that hold the true accuracy.

    Returns:
        `forgotten`, `retained` and `test`, each with `_lower` and `_upper`. NaN without rows.

    Example:
        >>> from torch import tensor
        >>> found = unlearning_accuracy(
        ...     forgotten=(tensor([0, 1]), tensor([1, 1])),
        ...     retained=(tensor([0, 1, 1]), tensor([0, 1, 1])),
        ...     test=(tensor([0, 1]), tensor([0, 0])),
        ... )
        >>> found["forgotten"], found["retained"], found["test"]
        (tensor(0.5000), tensor(1.), tensor(0.5000))
    """
    check_confidence_level(confidence_level)
    correct = [correct_rows("preds", *pair) for pair in (forgotten, retained, test)]
    return accuracies(
        torch.tensor([int(rows.sum()) for rows in correct]),
        torch.tensor([len(rows) for rows in correct]),
        confidence_level,
    )


def accuracies(correct: Tensor, total: Tensor, confidence_level: float) -> dict[str, Tensor]:
    """The three accuracies of counts of shape `(3,)`, with their intervals."""
    found: dict[str, Tensor] = {}
    for name, right, rows in zip(ROWS, correct.tolist(), total.tolist(), strict=True):
        value = right / rows if rows else math.nan
        found |= named_interval(name, value, *clopper_pearson(int(right), int(rows), confidence_level))
    return {name: value.to(correct.device) for name, value in found.items()}


def compared_rows(preds: Tensor, retrained_preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which rows the model has right, `(N,)`, and which the retrained models have, `(R, N)`."""
    if retrained_preds.shape == preds.shape:
        retrained_preds = retrained_preds[None]
    if retrained_preds.shape[1:] != preds.shape:
        raise ConfigurationError(
            f"Expected argument `retrained_preds` to have the shape of `preds`, {tuple(preds.shape)}, or an "
            f"additional leading dimension for several retrained models, but got {tuple(retrained_preds.shape)}"
        )
    return correct_rows("preds", preds, target), correct_rows("retrained_preds", retrained_preds, target)


def row_index(rows: str) -> int:
    """Returns which of the three kinds of rows it is, or raises `ConfigurationError`."""
    check_choice("rows", rows, ROWS)
    return ROWS.index(rows)


def accuracy_gap(
    preds: Tensor, retrained_preds: Tensor, target: Tensor, confidence_level: float = 0.95
) -> dict[str, Tensor]:
    r"""Compute the accuracy of a model minus that of models retrained without the forgotten rows, on the same rows.

    .. math:: gap = a_u - \frac{1}{R} \sum_r a_r

    It has a sign: below zero, the model is worse than a retrained one, which on forgotten rows is over-forgetting.
    The interval is the adjusted one of Bonett and Price for paired proportions, to whose variance that of the retrained
    models' mean is added. With one retrained model it is about that model alone.

    Source: Bonett and Price, Journal of Educational and Behavioral Statistics 37(4), 2012; the gap to retraining: Fan
    et al., *SalUn* (2310.12508).

    Args:
        preds: Classes of shape `(N,)`, or floats of shape `(N, C)`.
        retrained_preds: The same of a retrained model, or of `R` of them with shape `(R, N)` or `(R, N, C)`.
        target: Classes of shape `(N,)`.
        confidence_level: Share of intervals that hold the true gap.

    Returns:
        `accuracy`, `retrained`, and `gap` with `gap_lower` and `gap_upper`.

    Example:
        >>> from torch import tensor
        >>> found = accuracy_gap(tensor([0, 1, 1, 0]), tensor([[0, 0, 1, 1], [0, 1, 1, 1]]), tensor([0, 1, 1, 1]))
        >>> found["accuracy"], found["retrained"], found["gap"]
        (tensor(0.7500), tensor(0.8750), tensor(-0.1250))
    """
    check_confidence_level(confidence_level)
    correct, retrained = compared_rows(preds, retrained_preds, target)
    difference = correct.double() - retrained.double().mean(dim=0)
    found = gap_interval(
        len(target), float(correct.sum()), retrained.sum(dim=1).tolist(), float((difference**2).sum()), confidence_level
    )
    return {name: value.to(target.device) for name, value in found.items()}


def gap_interval(
    rows: int, correct: float, retrained: list[float], squares: float, confidence_level: float
) -> dict[str, Tensor]:
    """The gap and its interval from sums over rows; `squares` are those of the rows' differences."""
    models = len(retrained)
    if not rows or not models:
        return {name: torch.tensor(math.nan) for name in ("accuracy", "retrained", "gap", "gap_lower", "gap_upper")}
    mean = sum(retrained) / models / rows
    gap = correct / rows - mean
    # one row more on each side, so that models which agree on all rows do not have an interval of no width
    centre = gap * rows / (rows + 2)
    variance = ((squares + 2) / (rows + 2) - centre**2) / (rows + 2)
    if models > 1:
        variance += sum((right / rows - mean) ** 2 for right in retrained) / (models - 1) / models
    reach = normal_quantile(confidence_level) * math.sqrt(variance)
    return {
        "accuracy": torch.tensor(correct / rows),
        "retrained": torch.tensor(mean),
        **named_interval("gap", gap, max(-1.0, centre - reach), min(1.0, centre + reach)),
    }


def tug_of_war(
    forgotten: tuple[Tensor, Tensor, Tensor],
    retained: tuple[Tensor, Tensor, Tensor],
    test: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    r"""Compute ToW, the tug of war.

    .. math:: ToW = \prod_{X \in \{F, R, T\}} \left(1 - |a_u(X) - \overline{a_r}(X)|\right)

    Source: Zhao et al., *What makes unlearning hard and what to do about it* (2406.01257).

    Args:
        forgotten: Predictions, those of one or several retrained models, and targets, as for :func:`accuracy_gap`.
        retained: The same for rows that stay.
        test: The same for rows that no model has seen.

    Returns:
        A scalar from 0 to 1; 1 if all three accuracies are the retrained models'.

    Example:
        >>> from torch import tensor
        >>> tug_of_war(
        ...     forgotten=(tensor([0, 1]), tensor([0, 0]), tensor([0, 1])),
        ...     retained=(tensor([0, 1]), tensor([0, 1]), tensor([0, 1])),
        ...     test=(tensor([0, 0]), tensor([0, 1]), tensor([0, 1])),
        ... )
        tensor(0.2500)
    """
    product = torch.tensor(1.0, device=forgotten[2].device)
    for preds, retrained_preds, target in (forgotten, retained, test):
        correct, retrained = compared_rows(preds, retrained_preds, target)
        product = product * (1 - (correct.float().mean() - retrained.float().mean()).abs())
    return product
