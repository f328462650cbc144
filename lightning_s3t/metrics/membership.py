"""Membership inference: by given scores, or by those of a model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_s3t.metrics.functional.membership import check_rates, membership_inference
from lightning_s3t.metrics.functional.scores import (
    confidence_score,
    entropy_score,
    loss_score,
    modified_entropy_score,
)
from lightning_s3t.metrics.functional.validation import check_confidence_level, check_floats, membership
from lightning_s3t.metrics.metric import UnlearningMetric


class AttackMetric(UnlearningMetric):
    """Keeps a score and the membership of each row, and evaluates them. Subclasses say where the scores come from.

    Args:
        max_fpr: Highest false positive rate (FPR) at which the true positive rate (TPR) is given, one or several.
        confidence_level: Share of intervals that hold the true value.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.
    """

    # A MetricCollection takes metrics for one if their states have the same names and, at first, the same values:
    # losses are confidences as long as all rows are right. So the state of each attack has a name of its own.
    _state: str = "scores"
    members: list[Tensor]

    def __init__(self, max_fpr: float | Sequence[float] = 0.01, confidence_level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_fpr = check_rates(max_fpr)
        check_confidence_level(confidence_level)
        self.confidence_level = confidence_level
        self.add_state(self._state, default=[], dist_reduce_fx="cat")
        # as floats: a process without any rows is given an empty tensor of floats when states are gathered
        self.add_state("members", default=[], dist_reduce_fx="cat")

    def _add(self, scores: Tensor, is_member: Tensor | bool) -> None:
        members = membership(is_member, scores)
        getattr(self, self._state).append(scores)
        self.members.append(members.to(scores.dtype))

    def _attack_scores(self) -> Tensor:
        return dim_zero_cat(getattr(self, self._state))

    def compute(self) -> dict[str, Tensor]:
        """Compute AUC and TPR with their intervals."""
        members = dim_zero_cat(self.members).bool()
        return membership_inference(self._attack_scores(), members, self.max_fpr, self.confidence_level)


class MembershipInference(AttackMetric):
    r"""Compute how well an attack's scores distinguish rows that a model was trained on from other rows.

    .. math:: AUC = \Pr(s_{member} > s_{non}) + \tfrac{1}{2} \Pr(s_{member} = s_{non})

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``scores`` (:class:`~torch.Tensor`): floats of shape ``(N,)``, higher for rows that look like members
    - ``is_member`` (:class:`~torch.Tensor` or ``bool``): booleans (or 0 and 1) of shape ``(N,)``, or one for all rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``membership`` (``dict``): ``auc`` and, for each rate, ``tpr_at_fpr_{rate}``, as scalars, each with ``_lower`` and
      ``_upper``: the ends of DeLong's interval for the AUC and of Clopper and Pearson's for the TPR

    To measure unlearning, members are forgotten rows, and non-members rows that are like them and were never trained
    on.

    **Direction.** The best AUC is that of a model retrained without the rows: 0.5 if they are like the non-members.
    More means that they are still known; clearly less is over-forgetting, which gives them away too. So
    ``higher_is_better`` is ``None``.

    **What it cannot show.** An AUC of 0.5 says that this attack fails on the average row, not that any other would, nor
    that no single row is exposed. Forgotten rows that differ from the non-members (another class, another time) are
    distinguished even if the model does not remember them. The TPR at a rate below one by the number of non-members
    cannot be seen: there is a warning.

    Source: Yeom et al. (1709.01604); the TPR at a low FPR: Carlini et al. (2112.03570); the interval: DeLong et al.,
    Biometrics 44(3), 1988.

    Args:
        max_fpr: Highest false positive rate (FPR) at which the true positive rate (TPR) is given, one or several. The
            threshold is the best whose FPR is not above it; nothing is interpolated, and ties fall on one side.
        confidence_level: Share of intervals that hold the true value.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If an argument is out of its range, shapes differ, or scores are NaN.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import MembershipInference
        >>> metric = MembershipInference(max_fpr=0.5)
        >>> metric.update(tensor([0.9, 0.8, 0.3]), True)
        >>> metric.update(tensor([0.7, 0.2, 0.1]), False)
        >>> metric.compute()
        {'auc': tensor(0.8889), 'auc_lower': tensor(0.2614), 'auc_upper': tensor(0.9945),
         'tpr_at_fpr_0.5': tensor(1.), 'tpr_at_fpr_0.5_lower': tensor(0.2924), 'tpr_at_fpr_0.5_upper': tensor(1.)}
    """

    def update(self, scores: Tensor, is_member: Tensor | bool) -> None:
        """Update state with scores and memberships."""
        check_floats("scores", scores, ndim=1)
        self._add(scores, is_member)


class LossMembershipInference(AttackMetric):
    r"""Compute membership inference by the loss: rows whose cross-entropy is small are called members.

    .. math:: s(x, y) = \log p_y(x)

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``logits`` (:class:`~torch.Tensor`): floats of shape ``(N, C)``; logarithms of probabilities are logits too
    - ``target`` (:class:`~torch.Tensor`): classes of shape ``(N,)``
    - ``is_member`` (:class:`~torch.Tensor` or ``bool``): as for :class:`MembershipInference`

    Output, direction, and arguments are those of :class:`MembershipInference`.

    **What it cannot show.** It is the weakest of the attacks: hard rows have a large loss even if they were trained on,
    so single rows that are exposed are missed. Song and Mittal's attack by the confidence of the true class has the
    same curve.

    Source: Yeom et al. (1709.01604), adversary 2.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import LossMembershipInference
        >>> metric = LossMembershipInference(max_fpr=0.5)
        >>> metric.update(tensor([[4.0, 0.0], [0.0, 3.0]]), tensor([0, 1]), True)
        >>> metric.update(tensor([[0.5, 0.0], [1.0, 0.0]]), tensor([0, 1]), False)
        >>> metric.compute()["auc"]
        tensor(1.)
    """

    _state = "losses"

    def update(self, logits: Tensor, target: Tensor, is_member: Tensor | bool) -> None:
        """Update state with logits, targets and memberships."""
        self._add(loss_score(logits, target), is_member)


class ConfidenceMembershipInference(AttackMetric):
    r"""Compute membership inference by confidence: rows whose largest probability is high are called members.

    .. math:: s(x) = \log \max_c p_c(x)

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``logits`` (:class:`~torch.Tensor`): floats of shape ``(N, C)``; logarithms of probabilities are logits too
    - ``is_member`` (:class:`~torch.Tensor` or ``bool``): as for :class:`MembershipInference`

    Output, direction, and arguments are those of :class:`MembershipInference`.

    **What it cannot show.** It does not use labels: a confidently wrong row looks like a member.

    Source: Salem et al., *ML-Leaks* (1806.01246), the third adversary.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import ConfidenceMembershipInference
        >>> metric = ConfidenceMembershipInference(max_fpr=0.5)
        >>> metric.update(tensor([[4.0, 0.0], [0.0, 3.0]]), True)
        >>> metric.update(tensor([[0.5, 0.0], [1.0, 0.0]]), False)
        >>> metric.compute()["auc"]
        tensor(1.)
    """

    _state = "confidences"

    def update(self, logits: Tensor, is_member: Tensor | bool) -> None:
        """Update state with logits and memberships."""
        self._add(confidence_score(logits), is_member)


class EntropyMembershipInference(AttackMetric):
    r"""Compute membership inference by entropy: rows whose probabilities have a small entropy are called members.

    .. math:: s(x) = \sum_c p_c(x) \log p_c(x)

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``logits`` (:class:`~torch.Tensor`): floats of shape ``(N, C)``; logarithms of probabilities are logits too
    - ``is_member`` (:class:`~torch.Tensor` or ``bool``): as for :class:`MembershipInference`

    Output, direction, and arguments are those of :class:`MembershipInference`.

    **What it cannot show.** It does not use labels: a confidently wrong row looks like a member. Use
    :class:`ModifiedEntropyMembershipInference` where there are labels. Papers that train a classifier on entropies and
    report the share of forgotten rows that it calls members are not comparable: the best value there is that of a
    retrained model, neither 0 nor one half.

    Source: Salem et al. (1806.01246); Song and Mittal (2003.10595).

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import EntropyMembershipInference
        >>> metric = EntropyMembershipInference(max_fpr=0.5)
        >>> metric.update(tensor([[4.0, 0.0], [0.0, 3.0]]), True)
        >>> metric.update(tensor([[0.5, 0.0], [1.0, 0.0]]), False)
        >>> metric.compute()["auc"]
        tensor(1.)
    """

    _state = "entropies"

    def update(self, logits: Tensor, is_member: Tensor | bool) -> None:
        """Update state with logits and memberships."""
        self._add(entropy_score(logits), is_member)


class ModifiedEntropyMembershipInference(AttackMetric):
    r"""Compute membership inference by modified entropy, which is small only for rows that are surely right.

    .. math::
        s(x, y) = -Mentr(p, y), \quad
        Mentr(p, y) = -(1 - p_y) \log p_y - \sum_{c \neq y} p_c \log (1 - p_c)

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``logits`` (:class:`~torch.Tensor`): floats of shape ``(N, C)``; logarithms of probabilities are logits too
    - ``target`` (:class:`~torch.Tensor`): classes of shape ``(N,)``
    - ``is_member`` (:class:`~torch.Tensor` or ``bool``): as for :class:`MembershipInference`

    Output, direction, and arguments are those of :class:`MembershipInference`.

    **What it cannot show.** One threshold for all rows: it does not know which rows are hard. Values of published code
    that takes :math:`\log p` for :math:`\log(1 - p)` are not comparable.

    Source: Song and Mittal, *Systematic Evaluation of Privacy Risks of Machine Learning Models* (2003.10595), the
    definition of modified prediction entropy.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import ModifiedEntropyMembershipInference
        >>> metric = ModifiedEntropyMembershipInference(max_fpr=0.5)
        >>> metric.update(tensor([[4.0, 0.0], [0.0, 3.0]]), tensor([0, 1]), True)
        >>> metric.update(tensor([[0.5, 0.0], [1.0, 0.0]]), tensor([0, 1]), False)
        >>> metric.compute()["auc"]
        tensor(1.)
    """

    _state = "modified_entropies"

    def update(self, logits: Tensor, target: Tensor, is_member: Tensor | bool) -> None:
        """Update state with logits, targets and memberships."""
        self._add(modified_entropy_score(logits, target), is_member)
