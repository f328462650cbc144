"""Membership inference: whether scores distinguish members from non-members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torchmetrics.utilities.prints import rank_zero_warn

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.intervals import clopper_pearson, delong
from lightning_s3t.metrics.functional.scores import (
    confidence_score,
    entropy_score,
    loss_score,
    modified_entropy_score,
)
from lightning_s3t.metrics.functional.validation import check_confidence_level, check_floats, membership


def membership_inference(
    scores: Tensor,
    is_member: Tensor | bool,
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute how well scores distinguish members from non-members.

    The area under the ROC curve (AUC) comes with DeLong's interval (see :func:`delong`). The true positive rate (TPR)
    at a false positive rate (FPR) is that of the best threshold whose FPR is not above `max_fpr`: nothing is
    interpolated, and tied scores fall on one side. Its interval is Clopper and Pearson's over the members; it takes the
    threshold as given.

    Args:
        scores: Floats of shape `(N,)`, higher for rows that look like members. May be infinite.
        is_member: Booleans (or 0 and 1) of shape `(N,)`, or one for all rows.
        max_fpr: Highest FPR allowed, one or several.
        confidence_level: Share of intervals that hold the true value.

    Returns:
        `auc`, and for each rate `tpr_at_fpr_{rate}`, each with `_lower` and `_upper`. NaN if there are only members, or
        only non-members.

    Example:
        >>> from torch import tensor
        >>> scores = tensor([0.9, 0.8, 0.3, 0.7, 0.2, 0.1])
        >>> found = membership_inference(scores, tensor([1, 1, 1, 0, 0, 0]), max_fpr=0.4)
        >>> found["auc"], found["tpr_at_fpr_0.4"]
        (tensor(0.8889), tensor(1.))
    """
    check_floats("scores", scores, ndim=1)
    rates = check_rates(max_fpr)
    check_confidence_level(confidence_level)
    return _membership_inference(scores, membership(is_member, scores), rates, confidence_level)


def check_rates(max_fpr: float | Sequence[float]) -> tuple[float, ...]:
    """Returns the false positive rates as a tuple, or raises `ConfigurationError`."""
    rates = (max_fpr,) if isinstance(max_fpr, float | int) else tuple(max_fpr)
    if not rates or not all(isinstance(rate, float | int) and 0 <= rate <= 1 for rate in rates):
        raise ConfigurationError(
            f"Expected argument `max_fpr` to be a float in range [0, 1], or several, but got {max_fpr}"
        )
    return rates


def _membership_inference(
    scores: Tensor, is_member: Tensor, rates: tuple[float, ...], confidence_level: float
) -> dict[str, Tensor]:
    members, non_members = scores[is_member], scores[~is_member]
    if not len(members) or not len(non_members):
        rank_zero_warn(
            "Membership inference needs scores of members and of non-members, but one of the two is empty: the "
            "result is NaN",
            UserWarning,
        )
    found = named_interval("auc", *delong(members, non_members, confidence_level))
    for rate in rates:
        if len(non_members) and rate > 0 and allowed_false_positives(rate, len(non_members)) == 0:
            rank_zero_warn(
                f"With {len(non_members)} non-members no false positive is allowed at a rate of {rate}: "
                f"at least {math.ceil(1 / rate)} are needed",
                UserWarning,
            )
        caught = int(caught_at(members, non_members, rate).sum())
        value = caught / len(members) if len(members) and len(non_members) else math.nan
        interval = clopper_pearson(caught, len(members) if len(non_members) else 0, confidence_level)
        found |= named_interval(f"tpr_at_fpr_{rate}", value, *interval)
    # the computing is done on the CPU, in double precision
    return {name: value.to(scores.device) for name, value in found.items()}


def named_interval(name: str, value: float, lower: float, upper: float) -> dict[str, Tensor]:
    """A value and its interval, as metrics return them."""
    return {name: torch.tensor(value), f"{name}_lower": torch.tensor(lower), f"{name}_upper": torch.tensor(upper)}


def allowed_false_positives(rate: float, non_members: int) -> int:
    """The number of false positives that a rate allows. Exact for the rate as written: 0.29 of 100 are 29."""
    return math.floor(Fraction(str(rate)) * non_members)


def caught_at(members: Tensor, non_members: Tensor, rate: float) -> Tensor:
    """Whether members exceed the best threshold with a false positive rate of at most `rate`, in the last dimension."""
    allowed = allowed_false_positives(rate, non_members.shape[-1])
    if allowed >= non_members.shape[-1]:
        return torch.ones_like(members, dtype=torch.bool)
    return members > non_members.sort(dim=-1, descending=True).values[..., allowed, None]


def loss_membership_inference(
    logits: Tensor,
    target: Tensor,
    is_member: Tensor | bool,
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute membership inference by the loss: :func:`loss_score`, evaluated by :func:`membership_inference`.

    Example:
        >>> from torch import tensor
        >>> logits = tensor([[4.0, 0.0], [0.0, 3.0], [0.5, 0.0], [1.0, 0.0]])
        >>> loss_membership_inference(logits, tensor([0, 1, 0, 1]), tensor([1, 1, 0, 0]), max_fpr=0.5)["auc"]
        tensor(1.)
    """
    return membership_inference(loss_score(logits, target), is_member, max_fpr, confidence_level)


def confidence_membership_inference(
    logits: Tensor,
    is_member: Tensor | bool,
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute membership inference by confidence: :func:`confidence_score`, evaluated by :func:`membership_inference`.

    Example:
        >>> from torch import tensor
        >>> logits = tensor([[4.0, 0.0], [0.0, 3.0], [0.5, 0.0], [1.0, 0.0]])
        >>> confidence_membership_inference(logits, tensor([1, 1, 0, 0]), max_fpr=0.5)["auc"]
        tensor(1.)
    """
    return membership_inference(confidence_score(logits), is_member, max_fpr, confidence_level)


def entropy_membership_inference(
    logits: Tensor,
    is_member: Tensor | bool,
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute membership inference by entropy: :func:`entropy_score`, evaluated by :func:`membership_inference`.

    Example:
        >>> from torch import tensor
        >>> logits = tensor([[4.0, 0.0], [0.0, 3.0], [0.5, 0.0], [1.0, 0.0]])
        >>> entropy_membership_inference(logits, tensor([1, 1, 0, 0]), max_fpr=0.5)["auc"]
        tensor(1.)
    """
    return membership_inference(entropy_score(logits), is_member, max_fpr, confidence_level)


def modified_entropy_membership_inference(
    logits: Tensor,
    target: Tensor,
    is_member: Tensor | bool,
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute membership inference by modified entropy.

    The scores are those of :func:`modified_entropy_score`, evaluated by :func:`membership_inference`.

    Example:
        >>> from torch import tensor
        >>> logits = tensor([[4.0, 0.0], [0.0, 3.0], [0.5, 0.0], [1.0, 0.0]])
        >>> target = tensor([0, 1, 0, 1])
        >>> modified_entropy_membership_inference(logits, target, tensor([1, 1, 0, 0]), max_fpr=0.5)["auc"]
        tensor(1.)
    """
    return membership_inference(modified_entropy_score(logits, target), is_member, max_fpr, confidence_level)
