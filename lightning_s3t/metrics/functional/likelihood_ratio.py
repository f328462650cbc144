"""Likelihood ratio attacks: one on training rows, one on unlearned rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.membership import caught_at, check_rates, membership_inference, named_interval
from lightning_s3t.metrics.functional.validation import (
    check_choice,
    check_confidence_level,
    check_finite,
    check_floats,
    check_models,
    check_positive_integer,
    check_same_rows,
)

Mode = Literal["online", "offline"]
Variance = Literal["auto", "row", "pooled"]

# Below, a row's own variance is too noisy: Carlini et al. pool with fewer than 64 models, half of each kind
_ENOUGH_MODELS = 32
# Shadow models that agree to the last bit would make any other score infinitely unlikely
_LEAST_DEVIATION = 1e-6


class ShadowStatistics(NamedTuple):
    """Statistics of each row's shadow scores, tensors of shape `(N,)`: counts, means, sums of squared deviations."""

    count_in: Tensor
    mean_in: Tensor
    squares_in: Tensor
    count_out: Tensor
    mean_out: Tensor
    squares_out: Tensor


def likelihood_ratio_attack(
    scores: Tensor,
    shadow_scores: Tensor,
    shadow_is_member: Tensor,
    is_member: Tensor | bool,
    mode: Mode = "online",
    variance: Variance = "auto",
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    """Compute the likelihood ratio attack (LiRA).

    The scores are those of :func:`likelihood_ratio_scores`, evaluated by :func:`membership_inference`.

    Example:
        >>> from torch import tensor
        >>> shadows = tensor([[3.0, 3.2, 0.9, 1.1], [2.0, 2.2, 0.1, 0.3]])
        >>> trained_on = tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
        >>> found = likelihood_ratio_attack(tensor([3.1, 0.2]), shadows, trained_on, tensor([1, 0]), max_fpr=1.0)
        >>> found["auc"]
        tensor(1.)
    """
    ratios = likelihood_ratio_scores(scores, shadow_scores, shadow_is_member, mode, variance)
    return membership_inference(ratios, is_member, max_fpr, confidence_level)


def likelihood_ratio_scores(
    scores: Tensor,
    shadow_scores: Tensor,
    shadow_is_member: Tensor,
    mode: Mode = "online",
    variance: Variance = "auto",
) -> Tensor:
    r"""Compute each row's score in the likelihood ratio attack (LiRA).

    A normal distribution is fitted to the scores of shadow models that were trained on the row (in) and one to those of
    models that were not (out).

    .. math::
        \Lambda_{online} = \log \mathcal{N}(\phi; \mu_{in}, \sigma_{in}^2) -
        \log \mathcal{N}(\phi; \mu_{out}, \sigma_{out}^2), \qquad
        \Lambda_{offline} = \frac{\phi - \mu_{out}}{\sigma_{out}}

    The paper's offline score is the normal distribution function of this one, which puts rows in the same order.

    Source: Carlini et al., *Membership Inference Attacks From First Principles* (2112.03570), algorithm 1 and its
    offline variant.

    Args:
        scores: The attacked model's scores of shape `(N,)`, finite; :func:`logit_score` is nearly normal.
        shadow_scores: Of `K` shadow models, shape `(N, K)`, finite.
        shadow_is_member: Whether each of them was trained on the row, shape `(N, K)`.
        mode: `"online"` needs shadow models of both kinds for every row, `"offline"` only those that were not trained
            on it.
        variance: Per row (`"row"`), for all rows together (`"pooled"`, the mean of the variances within rows), or
            `"auto"`: pooled if a row has fewer than 32 shadow models of a kind. (The authors' code pools by the
            variance of all rows' scores, in which the differences between rows are too.)

    Returns:
        Scores of shape `(N,)`.

    Example:
        >>> from torch import tensor
        >>> shadows = tensor([[3.0, 3.2, 0.9, 1.1], [2.0, 2.2, 0.1, 0.3]])
        >>> trained_on = tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
        >>> likelihood_ratio_scores(tensor([3.1, 0.9]), shadows, trained_on, mode="offline")
        tensor([14.8492,  4.9497])
    """
    check_choice("mode", mode, ("online", "offline"))
    check_choice("variance", variance, ("auto", "row", "pooled"))
    statistics = shadow_statistics(scores, shadow_scores, shadow_is_member, mode)
    return likelihood_ratio_of(scores, statistics, mode, variance)


def shadow_statistics(scores: Tensor, shadow_scores: Tensor, shadow_is_member: Tensor, mode: Mode) -> ShadowStatistics:
    """Return the statistics of the shadow scores that the attack needs, or raise `ConfigurationError`."""
    check_floats("scores", scores, ndim=1)
    check_floats("shadow_scores", shadow_scores, ndim=2)
    check_same_rows(scores=scores, shadow_scores=shadow_scores)
    check_finite(scores=scores, shadow_scores=shadow_scores)
    if shadow_is_member.shape != shadow_scores.shape:
        raise ConfigurationError(
            f"Expected argument `shadow_is_member` to have the shape of `shadow_scores`, {tuple(shadow_scores.shape)}, "
            f"but got {tuple(shadow_is_member.shape)}"
        )
    trained_on = shadow_is_member.bool()
    for name, kind in (("in", trained_on), ("out", ~trained_on)):
        if (mode == "online" or name == "out") and len(scores) and (least := int(kind.sum(dim=1).min())) < 2:
            raise ConfigurationError(
                f'Expected argument `shadow_is_member` to have at least two "{name}" models for each row with '
                f"mode={mode!r} but a row has {least}"
            )
    return ShadowStatistics(*_moments(shadow_scores, trained_on), *_moments(shadow_scores, ~trained_on))


def _moments(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # in 16 bits, squares of scores overflow
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    count = chosen.sum(dim=1).to(scores.dtype)
    mean = torch.where(chosen, scores, 0.0).sum(dim=1) / count.clamp(min=1)
    squares = torch.where(chosen, (scores - mean[:, None]) ** 2, 0.0).sum(dim=1)
    return count, mean, squares


def likelihood_ratio_of(scores: Tensor, statistics: ShadowStatistics, mode: Mode, variance: Variance) -> Tensor:
    """Return the scores for given statistics of the shadow models."""
    found = statistics
    standard_out = (scores - found.mean_out) / (
        deviation_out := _deviation(found.count_out, found.squares_out, variance)
    )
    if mode == "offline":
        return standard_out
    deviation_in = _deviation(found.count_in, found.squares_in, variance)
    standard_in = (scores - found.mean_in) / deviation_in
    return (standard_out**2 - standard_in**2) / 2 + deviation_out.log() - deviation_in.log()


def _deviation(count: Tensor, squares: Tensor, variance: Variance) -> Tensor:
    if not len(count):
        return squares
    pooled = variance == "pooled" or (variance == "auto" and float(count.min()) < _ENOUGH_MODELS)
    own = squares.sum() / (count - 1).sum() if pooled else squares / (count - 1)
    return own.expand_as(squares).sqrt().clamp(min=_LEAST_DEVIATION)


def unlearning_likelihood_ratio_attack(
    unlearned: Tensor,
    retrained: Tensor,
    variance: Variance = "auto",
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
    num_bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Compute the likelihood ratio attack on unlearning (U-LiRA).

    Measure whether a model that unlearned a row can be distinguished from one that never had it.

    For each row, normal distributions are fitted to one half of both kinds of models, and the others are told apart by

    .. math::
        \Lambda = \log \mathcal{N}(\phi; \mu_{unlearned}, \sigma_{unlearned}^2) -
        \log \mathcal{N}(\phi; \mu_{retrained}, \sigma_{retrained}^2)

    AUC and TPR are computed **per row and then averaged**: a common threshold for all rows would be a different, weaker
    attack. Rows of one model depend on each other, so the intervals are a percentile bootstrap over the models of the
    second half; with few models they are too narrow.

    Source: Hayes et al., *Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy*
    (2403.01218). The paper reports an accuracy at the threshold 0.

    Args:
        unlearned: Finite scores (:func:`logit_score`) of shape `(N, U)` for `N` forgotten rows by `U` models that were
            trained with them and unlearned them. The first half of the models is used for fitting.
        retrained: Scores of shape `(N, R)` by models that never had the rows.
        variance: Of each row (`"row"`), of all rows together (`"pooled"`), or `"auto"`: pooled if a half has fewer than
            32 models.
        max_fpr: Highest FPR allowed, one or several. A half needs at least `1 / rate` models to resolve a rate.
        confidence_level: Share of intervals that hold the true value.
        num_bootstraps: Number of bootstrap resamples of the models.
        seed: Of these draws.

    Returns:
        `auc`, and for each rate `tpr_at_fpr_{rate}`, each with `_lower` and `_upper`.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> retrained = torch.randn(50, 32, generator=draw)
        >>> same, other = torch.randn(50, 32, generator=draw), 2 + torch.randn(50, 32, generator=draw)
        >>> round(float(unlearning_likelihood_ratio_attack(same, retrained)["auc"]), 1)
        0.5
        >>> round(float(unlearning_likelihood_ratio_attack(other, retrained)["auc"]), 1)
        0.9
    """
    check_models(4, unlearned=unlearned, retrained=retrained)
    check_finite(unlearned=unlearned, retrained=retrained)
    check_choice("variance", variance, ("auto", "row", "pooled"))
    check_confidence_level(confidence_level)
    check_positive_integer("num_bootstraps", num_bootstraps)
    rates = check_rates(max_fpr)
    if not len(unlearned):
        raise ConfigurationError("Expected argument `unlearned` to have at least one row but got none")
    fit, attack = zip(
        *((scores[:, : scores.shape[1] // 2], scores[:, scores.shape[1] // 2 :]) for scores in (unlearned, retrained)),
        strict=True,
    )
    everything = [torch.ones_like(scores, dtype=torch.bool) for scores in fit]
    (count_in, mean_in, squares_in), (count_out, mean_out, squares_out) = map(_moments, fit, everything)
    columns = ShadowStatistics(
        count_in[:, None],
        mean_in[:, None],
        squares_in[:, None],
        count_out[:, None],
        mean_out[:, None],
        squares_out[:, None],
    )
    of_unlearned, of_retrained = (likelihood_ratio_of(scores, columns, "online", variance).cpu() for scores in attack)

    generator = torch.Generator().manual_seed(seed)
    draws = [
        torch.randint(scores.shape[1], (num_bootstraps, scores.shape[1]), generator=generator)
        for scores in (of_unlearned, of_retrained)
    ]
    # the mean over rows of each pair of models: all that the area needs of the rows
    wins = torch.stack(
        [
            (one[:, None] > two).double() + (one[:, None] == two).double() / 2
            for one, two in zip(of_unlearned, of_retrained, strict=True)
        ]
    ).mean(dim=0)
    areas = torch.stack([wins[drawn][:, other].mean() for drawn, other in zip(*draws, strict=True)])
    found = named_interval("auc", float(wins.mean()), *_percentiles(areas, confidence_level))
    for rate in rates:
        value = caught_at(of_unlearned, of_retrained, rate).double().mean()
        again = torch.stack(
            [
                caught_at(of_unlearned[:, drawn], of_retrained[:, other], rate).double().mean()
                for drawn, other in zip(*draws, strict=True)
            ]
        )
        found |= named_interval(f"tpr_at_fpr_{rate}", float(value), *_percentiles(again, confidence_level))
    return {name: value.to(unlearned.device) for name, value in found.items()}


def _percentiles(values: Tensor, confidence_level: float) -> tuple[float, float]:
    tail = (1 - confidence_level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    # the percentiles are interpolated, which may leave 0 and 1 by a rounding
    return max(0.0, low), min(1.0, high)
