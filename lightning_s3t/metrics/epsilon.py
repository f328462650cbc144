"""The measures of the NeurIPS 2023 unlearning challenge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.epsilon import (
    check_delta,
    forgetting_quality,
    unlearning_epsilon,
    unlearning_epsilon_bound,
)
from lightning_s3t.metrics.functional.validation import check_models
from lightning_s3t.metrics.metric import UnlearningMetric


class RowEpsilons(UnlearningMetric):
    """Keeps each row's epsilon, and that of one half of the retrained models against the other."""

    epsilons: list[Tensor]
    null_epsilons: list[Tensor]
    bounds: list[Tensor]
    num_models: Tensor
    num_null_models: Tensor

    def __init__(self, delta: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_delta(delta)
        self.delta = delta
        self.add_state("epsilons", default=[], dist_reduce_fx="cat")
        self.add_state("null_epsilons", default=[], dist_reduce_fx="cat")
        self.add_state("bounds", default=[], dist_reduce_fx="cat")
        self.add_state("num_models", default=torch.tensor(0), dist_reduce_fx="max")
        self.add_state("num_null_models", default=torch.tensor(0), dist_reduce_fx="max")

    def update(self, unlearned: Tensor, retrained: Tensor) -> None:
        """Update state with scores of unlearned and of retrained models."""
        check_models(4, unlearned=unlearned, retrained=retrained)
        half = retrained.shape[1] // 2
        models = torch.tensor(min(unlearned.shape[1], retrained.shape[1]), device=self.num_models.device)
        if self.num_models and self.num_models != models:
            raise ConfigurationError(
                f"Expected scores of {int(self.num_models)} models in each update, as before, but got {int(models)}"
            )
        self.epsilons.append(unlearning_epsilon(unlearned, retrained, self.delta))
        self.null_epsilons.append(unlearning_epsilon(retrained[:, :half], retrained[:, half:], self.delta))
        self.bounds.append(unlearning_epsilon_bound(unlearned, retrained, self.delta))
        self.num_models = models
        self.num_null_models = torch.full_like(models, half)


class UnlearningEpsilon(RowEpsilons):
    r"""Compute the unlearning challenge's epsilon: how well thresholds distinguish unlearned from retrained models.

    .. math::
        \varepsilon = \max_{attacks} \max\left\{
        \log\frac{1 - \delta - FPR}{FNR},\; \log\frac{1 - \delta - FNR}{FPR}\right\}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``unlearned`` (:class:`~torch.Tensor`): scores of shape ``(N, U)`` for ``N`` forgotten rows by ``U`` models that
      unlearned them; :func:`~lightning_s3t.metrics.functional.logit_score` is the challenge's
    - ``retrained`` (:class:`~torch.Tensor`): scores of shape ``(N, R)`` by models that never had the rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``epsilon`` (``dict``): ``median`` and ``percentile_95`` over rows, ``separated``, the share of rows at the
      largest epsilon of 50 (whose models can be told apart always), ``lower_bound``, the median of the rows' bounds
      that chance does not exceed (:func:`~lightning_s3t.metrics.functional.unlearning_epsilon_bound`, at 95 %), and
      ``null``: the median for one half of the retrained models against the other

    Every row's epsilon is a number from 0 to 50: where published code has NaN or infinity, see
    :func:`~lightning_s3t.metrics.functional.unlearning_epsilon`. The median is reported since a few rows at 50 make any
    mean.

    **Direction.** Lower is better, down to ``null``, which is not 0: the best of many thresholds always finds
    something.

    **What it cannot show.** ``median`` is an estimate from the same models that chose the thresholds, and bounds
    nothing. Nothing here is a bound from above, as differential privacy has it: ``lower_bound`` says that epsilon is at
    least this. With :math:`M` models, values of epsilon above about :math:`\log(M - 1)` cannot be distinguished.

    Source: Triantafillou et al., *Are we making progress in unlearning? Findings from the first NeurIPS unlearning
    competition* (2406.09073).

    Args:
        delta: As in differential privacy.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from lightning_s3t.metrics import UnlearningEpsilon
        >>> draw = torch.Generator().manual_seed(0)
        >>> metric = UnlearningEpsilon()
        >>> metric.update(2 + torch.randn(9, 64, generator=draw), torch.randn(9, 64, generator=draw))
        >>> found = metric.compute()
        >>> bool(found["median"] > found["null"])
        True
    """

    higher_is_better: bool = False
    plot_upper_bound: float | None = None

    def compute(self) -> dict[str, Tensor]:
        """Compute the median over rows."""
        epsilons = dim_zero_cat(self.epsilons)
        return {
            "median": epsilons.quantile(0.5),
            "percentile_95": epsilons.quantile(0.95),
            "separated": (epsilons == epsilons.new_tensor(50.0)).float().mean(),
            "lower_bound": dim_zero_cat(self.bounds).quantile(0.5),
            "null": dim_zero_cat(self.null_epsilons).quantile(0.5),
        }


class ForgettingQuality(RowEpsilons):
    r"""Compute the unlearning challenge's forgetting quality.

    .. math:: F = \frac{1}{N} \sum_x 2^{-\lfloor \varepsilon_x / 0.5 \rfloor}

    Input is that of :class:`UnlearningEpsilon`. Rows with an epsilon of at least :math:`\lceil \log(M - 1) \rceil`
    count as 0: more cannot be seen with :math:`M` models.

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``quality`` (``dict``): ``quality``, and ``null``: the quality of one half of the retrained models against the
      other

    **Direction.** Higher is better, up to about ``null``. **Perfect unlearning gets less than 0.2, not 1**, since the
    best of many thresholds always finds something.

    **What it cannot show.** What :class:`UnlearningEpsilon` cannot, and how much of the model is left: the challenge
    multiplies by two ratios of accuracies (:func:`~lightning_s3t.metrics.functional.unlearning_challenge_score`).

    Source: Triantafillou et al. (2406.09073).

    Args:
        delta: As in differential privacy.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from lightning_s3t.metrics import ForgettingQuality
        >>> draw = torch.Generator().manual_seed(0)
        >>> metric = ForgettingQuality()
        >>> metric.update(2 + torch.randn(9, 64, generator=draw), torch.randn(9, 64, generator=draw))
        >>> found = metric.compute()
        >>> bool(found["quality"] < found["null"])
        True
    """

    higher_is_better: bool = True

    def compute(self) -> dict[str, Tensor]:
        """Compute the mean over rows."""
        return {
            "quality": forgetting_quality(dim_zero_cat(self.epsilons), int(self.num_models)),
            "null": forgetting_quality(dim_zero_cat(self.null_epsilons), int(self.num_null_models)),
        }
