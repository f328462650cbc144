"""The forgetting quality of the NeurIPS 2023 unlearning challenge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.validation import check_confidence_level, check_models

# Scores are logits of probabilities; one of float32's smallest is near -100
_MAX_SCORE = 100.0
# of the challenge: the width of a bucket, the largest epsilon, and the ratio of ranges below which it is given
_BUCKET = 0.5
_MAX_EPSILON = 50.0
_LEAST_RANGE = 0.01


def unlearning_epsilon(unlearned: Tensor, retrained: Tensor, delta: float = 1e-5) -> Tensor:
    r"""Compute each forgotten row's epsilon: how well thresholds distinguish unlearned models from retrained ones.

    .. math::
        \varepsilon = \max_{attacks} \max\left\{
        \log\frac{1 - \delta - FPR}{FNR},\; \log\frac{1 - \delta - FNR}{FPR}\right\}

    An attack is a threshold on the score in either direction, or one on its distance from the median of whichever kind
    of model has the narrower range. All values are tried as thresholds, so no grid is needed.

    Cases that are undefined in published code are defined here: logarithms of non-positive values do not count (they
    were NaN); a threshold with a single rate of 0 does not count (finitely many models do not show that a rate is 0); a
    threshold with both rates 0 separates the models, and gives the largest epsilon, 50. So does a range of one kind's
    scores that is less than a hundredth of the other's. Infinite scores are clipped at 100. No threshold that counts
    gives 0.

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
    centre = _centre(one, two)
    epsilon = torch.maximum(_epsilon(one, two, delta), _epsilon((one - centre).abs(), (two - centre).abs(), delta))
    ranges = [scores.amax(dim=1) - scores.amin(dim=1) for scores in (one, two)]
    degenerate = torch.minimum(*ranges) < _LEAST_RANGE * torch.maximum(*ranges)
    return torch.where(degenerate, _MAX_EPSILON, epsilon.clamp(0, _MAX_EPSILON))


def check_delta(delta: float) -> None:
    """Raise `ConfigurationError` unless delta is a probability below 1."""
    if not (isinstance(delta, float | int) and 0 <= delta < 1):
        raise ConfigurationError(f"Expected argument `delta` to be a float in range [0, 1) but got {delta}")


def _centre(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """Each row's median of whichever kind of model has the narrower range, of shape `(N, 1)`."""
    ranges = [scores.amax(dim=1) - scores.amin(dim=1) for scores in (unlearned, retrained)]
    medians = [scores.quantile(0.5, dim=1) for scores in (unlearned, retrained)]
    return torch.where(ranges[0] <= ranges[1], medians[0], medians[1])[:, None]


def _epsilon(unlearned: Tensor, retrained: Tensor, delta: float) -> Tensor:
    """The largest epsilon of all thresholds in both directions, for each row."""
    _, epsilons = _epsilons(unlearned, retrained, delta)
    return torch.cat(epsilons, dim=1).amax(dim=1).to(unlearned.dtype)


def _epsilons(unlearned: Tensor, retrained: Tensor, delta: float) -> tuple[Tensor, list[Tensor]]:
    """The thresholds, and the epsilon of each where unlearned models are above it, and where they are not above it."""
    thresholds = torch.cat([unlearned, retrained], dim=1)
    below = [
        torch.searchsorted(scores.sort(dim=1).values, thresholds, right=True).double() / scores.shape[1]
        for scores in (unlearned, retrained)
    ]
    found = []
    for false_negatives, false_positives in ((below[0], 1 - below[1]), (1 - below[0], below[1])):
        apart = (false_negatives == 0) & (false_positives == 0)
        counts = (false_negatives > 0) & (false_positives > 0)
        ratios = []
        for one, two in ((false_positives, false_negatives), (false_negatives, false_positives)):
            left = 1 - delta - one
            ratio = (left / two).log()
            ratio = torch.where(counts & (left > 0), ratio, -torch.inf)
            ratios.append(torch.where(apart, torch.inf, ratio))
        found.append(torch.maximum(*ratios))
    return thresholds, found


def unlearning_epsilon_bound(
    unlearned: Tensor, retrained: Tensor, delta: float = 1e-5, confidence_level: float = 0.95
) -> Tensor:
    r"""Compute for each forgotten row a lower bound of epsilon, which chance does not exceed.

    One half of the models chooses the attack, as :func:`unlearning_epsilon` does. The other half counts its errors, and
    Clopper and Pearson's upper bounds of both rates take their places in the formula:

    .. math::
        \underline{\varepsilon} = \max\left\{0,\;
        \log\frac{1 - \delta - \overline{FPR}}{\overline{FNR}},\;
        \log\frac{1 - \delta - \overline{FNR}}{\overline{FPR}}\right\}

    Source: auditing of differential privacy: Jagielski et al. (2006.07709) and Nasr et al. (2101.04535), applied to the
    attacks of the unlearning challenge.

    Args:
        unlearned: Scores of shape `(N, U)`. The first half of the models chooses.
        retrained: Scores of shape `(N, R)` by models that never had the rows.
        delta: As in differential privacy.
        confidence_level: Probability that a row's bound holds; over many rows, some do not.

    Returns:
        Bounds of shape `(N,)`. With few models they are near 0, whatever the models do.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> same, apart = torch.randn(1, 200, generator=draw), 9 + torch.randn(1, 200, generator=draw)
        >>> unlearning_epsilon_bound(same, torch.randn(1, 200, generator=draw))
        tensor([0.])
        >>> unlearning_epsilon_bound(apart, torch.randn(1, 200, generator=draw))
        tensor([3.2813])
    """
    from scipy.stats import beta

    check_delta(delta)
    check_confidence_level(confidence_level)
    check_models(4, unlearned=unlearned, retrained=retrained)
    if not len(unlearned):
        return unlearned.new_zeros(0)
    kind = torch.promote_types(unlearned.dtype, retrained.dtype)
    tables = [scores.to(kind).clamp(-_MAX_SCORE, _MAX_SCORE) for scores in (unlearned, retrained)]
    fit, test = ([table.tensor_split(2, dim=1)[half] for table in tables] for half in (0, 1))
    centre = _centre(*fit)
    best = torch.full((len(unlearned),), -torch.inf, dtype=torch.float64, device=unlearned.device)
    # where no threshold counts, no attack is known: all models are mistaken
    errors = [torch.full_like(best, float(scores.shape[1])) for scores in test]
    for statistic in (lambda scores: scores, lambda scores: (scores - centre).abs()):
        thresholds, epsilons = _epsilons(statistic(fit[0]), statistic(fit[1]), delta)
        for epsilon, sign in zip(epsilons, (1, -1), strict=True):
            found, place = epsilon.max(dim=1)
            threshold = thresholds.gather(1, place[:, None])
            # halfway to the next score: the same attack on these models, and a better one on others
            following = torch.where(thresholds > threshold, thresholds, torch.inf).amin(dim=1, keepdim=True)
            threshold = torch.where(following.isinf(), threshold, (threshold + following) / 2)
            # unlearned scores are called so above the threshold, or, with the other sign, not above it
            above = [(statistic(scores) > threshold).double().sum(dim=1) for scores in test]
            counts = above if sign < 0 else [scores.shape[1] - kept for scores, kept in zip(test, above, strict=True)]
            missed, right = counts[0], counts[1]
            false_alarms = test[1].shape[1] - right
            better = found > best
            best = torch.where(better, found, best)
            errors = [torch.where(better, new, old) for new, old in zip((missed, false_alarms), errors, strict=True)]
    tail = (1 - confidence_level) / 2
    highest = []
    for count, scores in zip(errors, test, strict=True):
        trials = scores.shape[1]
        bound = torch.from_numpy(beta.ppf(1 - tail, count.cpu().numpy() + 1, trials - count.cpu().numpy()))
        highest.append(torch.where(count.cpu() == trials, 1.0, bound).clamp(max=1.0))
    misses, alarms = highest
    ratios = [((1 - delta - one).clamp(min=0) / two).log() for one, two in ((alarms, misses), (misses, alarms))]
    return torch.stack(ratios).amax(dim=0).clamp(min=0).to(unlearned)


def forgetting_quality(epsilon: Tensor, num_models: int) -> Tensor:
    r"""Compute the challenge's forgetting quality from the rows' epsilons.

    .. math:: F = \frac{1}{N} \sum_x 2^{-\lfloor \varepsilon_x / 0.5 \rfloor}

    where rows with an epsilon of at least :math:`\lceil \log(M - 1) \rceil` count as 0: more cannot be seen with
    :math:`M` models.

    Source: Triantafillou et al. (2406.09073).

    Args:
        epsilon: Of shape `(N,)`.
        num_models: Number of models of each kind, :math:`M`.

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
        A scalar. **Perfect unlearning gets less than 0.2, not 1**: compare with the null of `ForgettingQuality`.

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
