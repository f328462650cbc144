"""Likelihood ratio attacks: one on training rows, one on unlearned rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.likelihood_ratio import (
    Mode,
    ShadowStatistics,
    Variance,
    likelihood_ratio_of,
    shadow_statistics,
    unlearning_likelihood_ratio_attack,
)
from lightning_s3t.metrics.functional.membership import check_rates
from lightning_s3t.metrics.functional.validation import (
    check_choice,
    check_confidence_level,
    check_finite,
    check_models,
    check_positive_integer,
)
from lightning_s3t.metrics.membership import AttackMetric
from lightning_s3t.metrics.metric import UnlearningMetric


class LikelihoodRatioAttack(AttackMetric):
    r"""Compute the likelihood ratio attack (LiRA) from given scores of shadow models.

    .. math::
        \Lambda_{online} = \log \mathcal{N}(\phi; \mu_{in}, \sigma_{in}^2) -
        \log \mathcal{N}(\phi; \mu_{out}, \sigma_{out}^2), \qquad
        \Lambda_{offline} = \frac{\phi - \mu_{out}}{\sigma_{out}}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``scores`` (:class:`~torch.Tensor`): of the attacked model, shape ``(N,)``;
      :func:`~lightning_s3t.metrics.functional.logit_score` is nearly normal
    - ``shadow_scores`` (:class:`~torch.Tensor`): of ``K`` shadow models, shape ``(N, K)``
    - ``shadow_is_member`` (:class:`~torch.Tensor`): which of them were trained on the row, shape ``(N, K)``
    - ``is_member`` (:class:`~torch.Tensor` or ``bool``): as for :class:`MembershipInference`

    Output and direction are those of :class:`MembershipInference`.

    **What it cannot show.** It is as good as its shadow models: trained in another way than the attacked one, they make
    the attack weaker, and a low AUC reassuring for no reason. It asks whether a model was *trained* on a row. For an
    unlearned model :class:`UnlearningLikelihoodRatioAttack` is the stronger question. The interval is over rows, for
    this model only.

    Source: Carlini et al., *Membership Inference Attacks From First Principles* (2112.03570), algorithm 1 and its
    offline variant.

    Args:
        mode: ``"online"`` needs shadow models of both kinds for every row, ``"offline"`` only those not trained on it.
        variance: Per row (``"row"``), for all rows together (``"pooled"``), or ``"auto"``: pooled if a row has fewer
            than 32 shadow models of a kind.
        max_fpr: Highest FPR at which the TPR is given, one or several.
        confidence_level: Share of intervals that hold the true value.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import LikelihoodRatioAttack
        >>> metric = LikelihoodRatioAttack(max_fpr=1.0)
        >>> shadows = tensor([[3.0, 3.2, 0.9, 1.1], [2.0, 2.2, 0.1, 0.3]])
        >>> trained_on = tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
        >>> metric.update(tensor([3.1, 0.2]), shadows, trained_on, is_member=tensor([1, 0]))
        >>> metric.compute()["auc"]
        tensor(1.)
    """

    count_in: list[Tensor]
    mean_in: list[Tensor]
    squares_in: list[Tensor]
    count_out: list[Tensor]
    mean_out: list[Tensor]
    squares_out: list[Tensor]

    def __init__(
        self,
        mode: Mode = "online",
        variance: Variance = "auto",
        max_fpr: float | Sequence[float] = 0.01,
        confidence_level: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_fpr, confidence_level, **kwargs)
        check_choice("mode", mode, ("online", "offline"))
        check_choice("variance", variance, ("auto", "row", "pooled"))
        self.mode = mode
        self.variance = variance
        for name in ShadowStatistics._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, shadow_scores: Tensor, shadow_is_member: Tensor, is_member: Tensor | bool) -> None:
        """Update state with scores of the attacked model and of shadow models."""
        statistics = shadow_statistics(scores, shadow_scores, shadow_is_member, self.mode)
        self._add(scores, is_member)
        for name, values in statistics._asdict().items():
            getattr(self, name).append(values)

    def _attack_scores(self) -> Tensor:
        statistics = ShadowStatistics(*(dim_zero_cat(getattr(self, name)) for name in ShadowStatistics._fields))
        return likelihood_ratio_of(super()._attack_scores(), statistics, self.mode, self.variance)


class UnlearningLikelihoodRatioAttack(UnlearningMetric):
    r"""Compute the likelihood ratio attack on unlearning (U-LiRA).

    Measure whether models that unlearned a row can be distinguished from models that never had it.

    .. math::
        \Lambda = \log \mathcal{N}(\phi; \mu_{unlearned}, \sigma_{unlearned}^2) -
        \log \mathcal{N}(\phi; \mu_{retrained}, \sigma_{retrained}^2)

    AUC and TPR are computed per row and then averaged. One half of the models is used for fitting.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``unlearned`` (:class:`~torch.Tensor`): scores of shape ``(N, U)`` for ``N`` forgotten rows by ``U`` models that
      were trained with them and unlearned them; :func:`~lightning_s3t.metrics.functional.logit_score` is nearly normal
    - ``retrained`` (:class:`~torch.Tensor`): scores of shape ``(N, R)`` by models that never had the rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``attack`` (``dict``): ``auc`` and, for each rate, ``tpr_at_fpr_{rate}``, each with ``_lower`` and ``_upper``, the
      ends of a percentile bootstrap over the models of the second half

    **Direction.** Lower is better. The best AUC is 0.5, since two trainings without the row cannot be distinguished;
    lower values are noise from few models.

    **What it cannot show.** Anything beyond a normal distribution of one score. With few models intervals are too
    narrow, and a TPR at an FPR below one by half the number of retrained models cannot be seen. It needs many trainings
    and unlearnings.

    Source: Hayes et al., *Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy*
    (2403.01218).

    Args:
        variance: Per row (``"row"``), for all rows together (``"pooled"``), or ``"auto"``: pooled if a half has fewer
            than 32 models.
        max_fpr: Highest FPR at which the TPR is given, one or several.
        confidence_level: Share of intervals that hold the true value.
        num_bootstraps: Number of bootstrap resamples of the models.
        seed: Of these draws.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from lightning_s3t.metrics import UnlearningLikelihoodRatioAttack
        >>> draw = torch.Generator().manual_seed(0)
        >>> metric = UnlearningLikelihoodRatioAttack(max_fpr=0.1, num_bootstraps=100)
        >>> metric.update(2 + torch.randn(50, 32, generator=draw), torch.randn(50, 32, generator=draw))
        >>> round(float(metric.compute()["auc"]), 1)
        0.9
    """

    higher_is_better: bool = False
    unlearned: list[Tensor]
    retrained: list[Tensor]
    num_unlearned: Tensor
    num_retrained: Tensor

    def __init__(
        self,
        variance: Variance = "auto",
        max_fpr: float | Sequence[float] = 0.01,
        confidence_level: float = 0.95,
        num_bootstraps: int = 1000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("variance", variance, ("auto", "row", "pooled"))
        check_confidence_level(confidence_level)
        check_positive_integer("num_bootstraps", num_bootstraps)
        self.variance = variance
        self.max_fpr = check_rates(max_fpr)
        self.confidence_level = confidence_level
        self.num_bootstraps = num_bootstraps
        self.seed = seed
        # flat, since a process without any rows takes part in the gathering with an empty tensor of one dimension
        self.add_state("unlearned", default=[], dist_reduce_fx="cat")
        self.add_state("retrained", default=[], dist_reduce_fx="cat")
        self.add_state("num_unlearned", default=torch.tensor(0), dist_reduce_fx="max")
        self.add_state("num_retrained", default=torch.tensor(0), dist_reduce_fx="max")

    def update(self, unlearned: Tensor, retrained: Tensor) -> None:
        """Update state with scores of unlearned and of retrained models."""
        check_models(4, unlearned=unlearned, retrained=retrained)
        check_finite(unlearned=unlearned, retrained=retrained)
        counts = torch.tensor([unlearned.shape[1], retrained.shape[1]], device=self.num_unlearned.device)
        known = torch.stack([self.num_unlearned, self.num_retrained])
        if known.any() and not torch.equal(counts, known):
            raise ConfigurationError(
                f"Expected scores of the same models in each update, {known.tolist()}, but got {counts.tolist()}"
            )
        self.num_unlearned, self.num_retrained = counts
        self.unlearned.append(unlearned.flatten())
        self.retrained.append(retrained.flatten())

    def compute(self) -> dict[str, Tensor]:
        """Compute AUC and TPR with their intervals."""
        return unlearning_likelihood_ratio_attack(
            dim_zero_cat(self.unlearned).unflatten(0, (-1, int(self.num_unlearned))),
            dim_zero_cat(self.retrained).unflatten(0, (-1, int(self.num_retrained))),
            self.variance,
            self.max_fpr,
            self.confidence_level,
            self.num_bootstraps,
            self.seed,
        )
