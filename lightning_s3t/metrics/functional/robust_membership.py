"""Robust membership inference (RMIA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.membership import membership_inference
from lightning_s3t.metrics.functional.validation import check_choice, check_floats, check_same_rows

Mode = Literal["online", "offline"]


def robust_membership_inference(
    probabilities: Tensor,
    reference_probabilities: Tensor,
    is_member: Tensor | bool,
    population_probabilities: Tensor,
    population_reference_probabilities: Tensor,
    reference_is_member: Tensor | None = None,
    mode: Mode = "offline",
    gamma: float = 1.0,
    offline_scale: float = 0.3,
    max_fpr: float | Sequence[float] = 0.01,
    confidence_level: float = 0.95,
) -> dict[str, Tensor]:
    r"""Compute robust membership inference (RMIA).

    A row's score is the share of population rows `z` that it dominates:

    .. math::
        \Pr_z\left[\frac{\Pr(x \mid \theta) / \Pr(x)}{\Pr(z \mid \theta) / \Pr(z)} \geq \gamma\right]

    with :math:`\Pr(x)` the mean probability that reference models give the row's class. Offline, all of them are models
    that were not trained on the row, and :math:`\Pr(x) = \frac{1}{2}((1 + a) \overline{p}_{out} + 1 - a)`.

    Source: Zarifzadeh et al., *Low-Cost High-Power Membership Inference Attacks* (2312.03262). The authors' public code
    takes :math:`\gamma = 1`; larger values make ties at 0.

    Args:
        probabilities: Of the true class by the attacked model, shape `(N,)`.
        reference_probabilities: The same by `K` reference models, shape `(N, K)`.
        is_member: Booleans (or 0 and 1) of shape `(N,)`, or one for all rows.
        population_probabilities: The same for `Z` rows that are neither members nor attacked, shape `(Z,)`.
        population_reference_probabilities: Shape `(Z, K)`.
        reference_is_member: Whether each reference model was trained on each row, shape `(N, K)`; the default is that
            none was.
        mode: `"online"` takes the mean of in and out models; `"offline"` the out models alone.
        gamma: The factor by which a row's ratio has to be larger.
        offline_scale: The constant :math:`a` from 0 to 1, to be tuned on a pair of reference models.
        max_fpr: Highest FPR allowed, one or several.
        confidence_level: Share of intervals that hold the true value.

    Returns:
        As :func:`membership_inference`.

    Example:
        >>> from torch import tensor
        >>> found = robust_membership_inference(
        ...     tensor([0.99, 0.97, 0.4, 0.6]),
        ...     tensor([[0.5], [0.3], [0.5], [0.6]]),
        ...     tensor([1, 1, 0, 0]),
        ...     population_probabilities=tensor([0.5, 0.9, 0.2]),
        ...     population_reference_probabilities=tensor([[0.5], [0.8], [0.3]]),
        ...     max_fpr=0.5,
        ... )
        >>> found["auc"]
        tensor(1.)
    """
    ratios = log_ratios(probabilities, reference_probabilities, reference_is_member, mode, offline_scale)
    population = log_ratios(population_probabilities, population_reference_probabilities, None, mode, offline_scale)
    return membership_inference(dominated(ratios, population, gamma), is_member, max_fpr, confidence_level)


def check_constants(mode: str, gamma: float, offline_scale: float) -> None:
    """Raises `ConfigurationError` unless these are constants of the attack."""
    check_choice("mode", mode, ("online", "offline"))
    if not (isinstance(gamma, float | int) and gamma > 0):
        raise ConfigurationError(f"Expected argument `gamma` to be a positive number but got {gamma}")
    if not (isinstance(offline_scale, float | int) and 0 <= offline_scale <= 1):
        raise ConfigurationError(
            f"Expected argument `offline_scale` to be a number in range [0, 1] but got {offline_scale}"
        )


def log_ratios(
    probabilities: Tensor,
    references: Tensor,
    reference_is_member: Tensor | None,
    mode: Mode,
    offline_scale: float,
) -> Tensor:
    """Return the log-ratio of a row's probability under the attacked model and under the reference models."""
    check_floats("probabilities", probabilities, ndim=1)
    check_floats("reference_probabilities", references, ndim=2)
    check_same_rows(probabilities=probabilities, reference_probabilities=references)
    for name, values in (("probabilities", probabilities), ("reference_probabilities", references)):
        if values.numel() and not (float(values.min()) >= 0 and float(values.max()) <= 1):
            raise ConfigurationError(f"Expected argument `{name}` to hold values from 0 to 1 but got {values}")
    if reference_is_member is None:
        reference_is_member = torch.zeros_like(references)
    if reference_is_member.shape != references.shape:
        raise ConfigurationError(
            f"Expected argument `reference_is_member` to have the shape of `reference_probabilities`, "
            f"{tuple(references.shape)}, but got {tuple(reference_is_member.shape)}"
        )
    trained_on = reference_is_member.bool()
    if not (~trained_on).any(dim=1).all():
        raise ConfigurationError(
            "Expected argument `reference_probabilities` to have, for each row, at least one model that was not "
            f"trained on it but {int((~(~trained_on).any(dim=1)).sum())} row(s) have none"
        )
    outside = _mean(references, ~trained_on)
    if mode == "offline":
        expected = ((1 + offline_scale) * outside + 1 - offline_scale) / 2
    else:
        # models that are not there do not count as zeros
        inside = torch.where(trained_on.any(dim=1), _mean(references, trained_on), outside)
        expected = (inside + outside) / 2
    tiny = torch.finfo(expected.dtype).tiny
    return probabilities.clamp(min=tiny).log() - expected.clamp(min=tiny).log()


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)


def dominated(ratios: Tensor, population: Tensor, gamma: float) -> Tensor:
    """The share of the population that each row's ratio exceeds by the factor gamma."""
    if not len(population):
        raise ConfigurationError("Robust membership inference needs population rows but got none")
    ordered = population.to(ratios.dtype).sort().values
    gamma_log = torch.tensor(gamma, dtype=ratios.dtype, device=ratios.device).log()
    return torch.searchsorted(ordered, ratios - gamma_log, right=True).to(ratios.dtype) / len(population)
