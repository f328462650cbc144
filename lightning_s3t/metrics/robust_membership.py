"""Robust membership inference (RMIA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.robust_membership import Mode, check_constants, dominated, log_ratios
from lightning_s3t.metrics.membership import AttackMetric


class RobustMembershipInference(AttackMetric):
    r"""Compute robust membership inference (RMIA), which needs only a few reference models.

    .. math::
        s(x) = \Pr_z\left[\frac{\Pr(x \mid \theta) / \Pr(x)}{\Pr(z \mid \theta) / \Pr(z)} \geq \gamma\right], \quad
        \Pr(x) = \tfrac{1}{2}\left((1 + a)\, \overline{p}_{out}(x) + 1 - a\right) \text{ (offline)}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``probabilities`` (:class:`~torch.Tensor`): of the true class by the attacked model, shape ``(N,)``
    - ``reference_probabilities`` (:class:`~torch.Tensor`): the same by ``K`` reference models, shape ``(N, K)``
    - ``is_member`` (:class:`~torch.Tensor`, ``bool`` or ``None``): as for :class:`MembershipInference`; ``None`` for
      rows of the population ``z``, which are neither members nor attacked
    - ``reference_is_member`` (:class:`~torch.Tensor` or ``None``): which reference models were trained on which row,
      shape ``(N, K)``; none if not given

    Output and direction are those of :class:`MembershipInference`. For an unlearned model, take retrained models as
    references, and test rows that are not attacked as the population.

    **What it cannot show.** Rows that are more than the whole population have one score, 1, and cannot be ordered: with
    few population rows the TPR at a low FPR is coarse. References that are trained in another way make the attack
    weaker. The interval is over rows, for this model only.

    Source: Zarifzadeh et al., *Low-Cost High-Power Membership Inference Attacks* (2312.03262). The authors' public code
    takes :math:`\gamma = 1`.

    Args:
        mode: ``"offline"`` takes only reference models that were not trained on the row, ``"online"`` the mean of both
            kinds.
        gamma: The factor by which a row's ratio has to be larger.
        offline_scale: The constant :math:`a` from 0 to 1, to be tuned on a pair of reference models.
        max_fpr: Highest FPR at which the TPR is given, one or several.
        confidence_level: Share of intervals that hold the true value.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import RobustMembershipInference
        >>> metric = RobustMembershipInference(max_fpr=0.5)
        >>> metric.update(tensor([0.99, 0.97]), tensor([[0.5], [0.3]]), is_member=True)
        >>> metric.update(tensor([0.4, 0.6]), tensor([[0.5], [0.6]]), is_member=False)
        >>> metric.update(tensor([0.5, 0.9, 0.2]), tensor([[0.5], [0.8], [0.3]]), is_member=None)
        >>> metric.compute()["auc"]
        tensor(1.)
    """

    population: list[Tensor]

    def __init__(
        self,
        mode: Mode = "offline",
        gamma: float = 1.0,
        offline_scale: float = 0.3,
        max_fpr: float | Sequence[float] = 0.01,
        confidence_level: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_fpr, confidence_level, **kwargs)
        check_constants(mode, gamma, offline_scale)
        self.mode = mode
        self.gamma = gamma
        self.offline_scale = offline_scale
        self.add_state("population", default=[], dist_reduce_fx="cat")

    def update(
        self,
        probabilities: Tensor,
        reference_probabilities: Tensor,
        is_member: Tensor | bool | None,
        reference_is_member: Tensor | None = None,
    ) -> None:
        """Update state with attacked rows, or, if `is_member` is None, with rows of the population."""
        ratios = log_ratios(probabilities, reference_probabilities, reference_is_member, self.mode, self.offline_scale)
        if is_member is None:
            self.population.append(ratios)
        else:
            self._add(ratios, is_member)

    def _attack_scores(self) -> Tensor:
        if isinstance(self.population, list) and not self.population:
            raise ConfigurationError(
                "Robust membership inference needs population rows but got none: call `update` with `is_member=None` "
                "for them"
            )
        return dominated(super()._attack_scores(), dim_zero_cat(self.population), self.gamma)
