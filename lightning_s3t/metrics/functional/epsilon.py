"""The forgetting quality of the NeurIPS 2023 unlearning challenge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.validation import check_models

# Scores are logits of probabilities; one of float32's smallest is near -100
_MAX_SCORE = 100.0
# of the challenge: the width of a bucket, the largest epsilon, and the ratio of ranges below which it is given
_BUCKET = 0.5
_MAX_EPSILON = 50.0
_LEAST_RANGE = 0.01


def unlearning_epsilon(unlearned: Tensor, retrained: Tensor, delta: float = 1e-5) -> Tensor:
    r"""Compute each forgotten row's epsilon: how well thresholds tell unlearned models from retrained ones.

    .. math::
        \varepsilon = \max_{attacks} \max\left\{
        \log\frac{1 - \delta - FPR}{FNR},\; \log\frac{1 - \delta - FNR}{FPR}\right\}

    An attack is a threshold on the score in either direction, or one on its distance from the median of whichever kind
    of model has the narrower range. All values are tried as thresholds, so no grid has to be chosen.

    What is undefined in published code is settled: logarithms of what is not positive do not count (they were NaN); a
    threshold with a single rate of 0 does not count (finitely many models do not show that a rate is 0); a threshold
    with both rates 0 tells the models apart, and gives the largest epsilon, 50. So does a range of one kind's scores
    that is less than a hundredth of the other's. Infinite scores are clipped at 100. No threshold that counts gives 0.

    Source: Triantafillou et al., *Are we making progress in unlearning?* (2406.09073).

    Args:
        unlearned: Scores (:func:`logit_score`) of shape `(N, U)` for `N` forgotten rows by `U` unlearned models.
        retrained: Scores of shape `(N, R)` by models that never had the rows.
        delta: As in differential privacy.

    Returns:
        Epsilons of shape `(N,)`, from 0 to 50.

    Example:
        >>> from torch import tensor
        >>> unlearning_epsilon(tensor([[1.0, 2.0, 3.0, 4.0]]), tensor([[2.5, 3.5, 4.5, 5.5]]))
        tensor([1.0986])
    """
    check_delta(delta)
    check_models(2, unlearned=unlearned, retrained=retrained)
    if not len(unlearned):
        return unlearned.new_zeros(0)
    kind = torch.promote_types(unlearned.dtype, retrained.dtype)
    one, two = (scores.to(kind).clamp(-_MAX_SCORE, _MAX_SCORE) for scores in (unlearned, retrained))
    ranges = [scores.amax(dim=1) - scores.amin(dim=1) for scores in (one, two)]
    narrower = torch.where(ranges[0] <= ranges[1], one.quantile(0.5, dim=1), two.quantile(0.5, dim=1))[:, None]
    epsilon = torch.maximum(_epsilon(one, two, delta), _epsilon((one - narrower).abs(), (two - narrower).abs(), delta))
    degenerate = torch.minimum(*ranges) < _LEAST_RANGE * torch.maximum(*ranges)
    return torch.where(degenerate, _MAX_EPSILON, epsilon.clamp(0, _MAX_EPSILON))


def check_delta(delta: float) -> None:
    """Raises `ConfigurationError` unless delta is a probability below 1."""
    if not (isinstance(delta, float | int) and 0 <= delta < 1):
        raise ConfigurationError(f"Expected argument `delta` to be a float in range [0, 1) but got {delta}")


def _epsilon(unlearned: Tensor, retrained: Tensor, delta: float) -> Tensor:
    """The largest epsilon of all thresholds in both directions, for each row."""
    thresholds = torch.cat([unlearned, retrained], dim=1)
    below = [
        torch.searchsorted(scores.sort(dim=1).values, thresholds, right=True).double() / scores.shape[1]
        for scores in (unlearned, retrained)
    ]
    found = []
    for false_negatives, false_positives in ((below[0], 1 - below[1]), (1 - below[0], below[1])):
        apart = (false_negatives == 0) & (false_positives == 0)
        counts = (false_negatives > 0) & (false_positives > 0)
        for one, two in ((false_positives, false_negatives), (false_negatives, false_positives)):
            left = 1 - delta - one
            ratio = (left / two).log()
            ratio = torch.where(counts & (left > 0), ratio, -torch.inf)
            found.append(torch.where(apart, torch.inf, ratio).amax(dim=1))
    return torch.stack(found).amax(dim=0).to(unlearned.dtype)


def forgetting_quality(epsilon: Tensor, num_models: int) -> Tensor:
    r"""Compute the challenge's forgetting quality from the rows' epsilons.

    .. math:: F = \frac{1}{N} \sum_x 2^{-\lfloor \varepsilon_x / 0.5 \rfloor}

    where rows with an epsilon of at least :math:`\lceil \log(M - 1) \rceil` count as 0: more cannot be seen with
    :math:`M` models.

    Source: Triantafillou et al. (2406.09073).

    Args:
        epsilon: Of shape `(N,)`.
        num_models: How many models of each kind, :math:`M`.

    Returns:
        A scalar from 0 to 1.

    Example:
        >>> from torch import tensor
        >>> forgetting_quality(tensor([0.2, 0.7, 9.0]), num_models=512)
        tensor(0.5000)
    """
    if num_models < 2:
        raise ConfigurationError(f"Expected argument `num_models` to be at least 2 but got {num_models}")
    limit = math.ceil(math.log(num_models - 1)) if num_models > 2 else 1
    quality = torch.pow(2.0, -(epsilon / _BUCKET).floor())
    return torch.where(epsilon >= limit, 0.0, quality).mean()


def unlearning_challenge_score(quality: Tensor, accuracies: dict[str, float], retrained: dict[str, float]) -> Tensor:
    r"""Compute the challenge's final score: the forgetting quality times the utility that is left.

    .. math:: F \times \frac{RA_u}{RA_r} \times \frac{TA_u}{TA_r}

    Source: Triantafillou et al. (2406.09073).

    Args:
        quality: From :func:`forgetting_quality`.
        accuracies: `retained` and `test` accuracy of the unlearned models.
        retrained: The same of retrained models.

    Returns:
        A scalar. **Perfect unlearning gets about 0.2, not 1**: compare with the null of `ForgettingQuality`.

    Example:
        >>> from torch import tensor
        >>> unlearning_challenge_score(tensor(0.2), {"retained": 0.9, "test": 0.8}, {"retained": 1.0, "test": 0.8})
        tensor(0.1800)
    """
    for name in ("retained", "test"):
        if not retrained[name] > 0:
            raise ConfigurationError(
                f"Expected argument `retrained` to have a positive {name!r} but got {retrained[name]}"
            )
        quality = quality * accuracies[name] / retrained[name]
    return quality
