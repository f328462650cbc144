"""Confidence intervals."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from lightning_s3t.metrics.functional.validation import check_confidence_level


def clopper_pearson(successes: int, trials: int, confidence_level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate, with at least the nominal coverage for any number of trials.

    Source: Clopper and Pearson, Biometrika 26(4), 1934.

    Args:
        successes: Number of successful trials.
        trials: Number of independent trials.
        confidence_level: Share of intervals that hold the true rate.

    Returns:
        Lower and upper end; 0 and 1 if there were no trials.

    Example:
        >>> low, high = clopper_pearson(0, 10)
        >>> low, round(high, 4)
        (0.0, 0.3085)
    """
    from scipy.stats import binomtest

    check_confidence_level(confidence_level)
    if not trials:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(confidence_level, method="exact")
    return float(interval.low), float(interval.high)


def normal_quantile(confidence_level: float) -> float:
    """Number of standard errors that a two-sided interval extends to each side."""
    return NormalDist().inv_cdf(0.5 + confidence_level / 2)


def delong(members: Tensor, non_members: Tensor, confidence_level: float = 0.95) -> tuple[float, float, float]:
    r"""Area under the ROC curve with DeLong's interval, on the scale of the logit.

    .. math::
        \widehat{AUC} = \frac{1}{mn} \sum_{i,j} \psi(x_i, y_j), \quad
        \psi(x, y) = [x > y] + \tfrac{1}{2}[x = y], \quad
        \widehat{var} = \frac{s_{10}^2}{m} + \frac{s_{01}^2}{n}

    where :math:`s_{10}^2` is the variance over members of the share of non-members that each beats, and
    :math:`s_{01}^2` the other way round. On the logit's scale the interval stays within 0 and 1.

    Where that variance is zero (scores that separate the groups fully, or that are all equal), Clopper and Pearson's
    interval from as many disjoint pairs as the smaller group has rows is used instead. With a single row on one side
    nothing is known of the variance unless the area is 0, 1/2 or 1: the interval is 0 to 1.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44(3), 1988; the logit: Pepe, *The Statistical Evaluation of
    Medical Tests*, 2003, section 5.2.

    Args:
        members: Scores of shape `(M,)`.
        non_members: Scores of shape `(N,)`.
        confidence_level: Share of intervals that hold the true area.

    Returns:
        The area, and the lower and upper end of its interval. NaN, 0 and 1 if a group is empty.

    Example:
        >>> from torch import tensor
        >>> area, low, high = delong(tensor([3.0, 2.0, 2.0]), tensor([1.0, 2.0, 0.0]))
        >>> round(area, 4), round(low, 4), round(high, 4)
        (0.8889, 0.4047, 0.9895)
    """
    check_confidence_level(confidence_level)
    if not len(members) or not len(non_members):
        return math.nan, 0.0, 1.0
    members, non_members = members.cpu().double(), non_members.cpu().double()
    of_members = _share_beaten(members, non_members)
    of_non_members = _share_beaten(non_members, members)
    area = float(of_members.mean())
    variance = sum(
        float(shares.var()) / len(shares) if len(shares) > 1 else 0.0 for shares in (of_members, of_non_members)
    )
    pairs = min(len(members), len(non_members))
    if bool((of_members == of_members[0]).all()) and bool((of_non_members == of_non_members[0]).all()):
        # all pairs agree (they beat, tie, or lose): so do `pairs` disjoint, hence independent, ones
        doubt = 1 - ((1 - confidence_level) / 2) ** (1 / pairs)
        return area, max(0.0, area - doubt * max(area, 0.5)), min(1.0, area + doubt * max(1 - area, 0.5))
    if pairs == 1:
        return area, 0.0, 1.0
    reach = normal_quantile(confidence_level) * math.sqrt(variance) / (area * (1 - area))
    centre = math.log(area / (1 - area))
    return area, _expit(centre - reach), _expit(centre + reach)


def _share_beaten(scores: Tensor, others: Tensor) -> Tensor:
    """For each score, the share of other scores that are smaller; ties count one half."""
    ordered = others.sort().values
    smaller = torch.searchsorted(ordered, scores, right=False)
    not_larger = torch.searchsorted(ordered, scores, right=True)
    return (smaller + not_larger).double() / (2 * len(others))


def _expit(value: float) -> float:
    # written so that neither tail overflows
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
