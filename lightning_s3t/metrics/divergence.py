"""Distances between the answers of two models."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.metrics.functional.divergence import jensen_shannon_of_logits
from lightning_s3t.metrics.metric import UnlearningMetric


class MeanDivergence(UnlearningMetric):
    """Sums the rows' Jensen-Shannon divergences."""

    divergence: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("divergence", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, logits: Tensor, other_logits: Tensor) -> None:
        self.divergence += jensen_shannon_of_logits(logits, other_logits).sum()
        self.total += len(logits)

    def _mean(self) -> Tensor:
        return (self.divergence / self.total).float()


class RetrainDivergence(MeanDivergence):
    r"""Compute the mean Jensen-Shannon divergence of a model's answers to those of a retrained model, in nats.

    .. math::
        JS(p, q) = \tfrac{1}{2} KL(p \,\|\, m) + \tfrac{1}{2} KL(q \,\|\, m), \quad m = \tfrac{1}{2}(p + q)

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``logits`` (:class:`~torch.Tensor`): floats of shape ``(N, C)``; logarithms of probabilities are logits too
    - ``retrained_logits`` (:class:`~torch.Tensor`): of the same rows by a model that never had the forgotten ones

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``divergence`` (:class:`~torch.Tensor`): a scalar from 0 to log 2

    **Direction.** Lower is better. But the value to reach is not 0: it is the divergence of two models retrained with
    different seeds, which this metric gives when their logits are passed.

    **What it cannot show.** Outputs can be close on these rows and far apart on others, and the weights may hold
    information that the outputs do not show.

    Source: Lin, IEEE Transactions on Information Theory 37(1), 1991; to a retrained model: Golatkar et al. (1911.04933)
    and Chundawat et al. (2205.08096). Published code often averages :math:`KL(m \| p)`, which is unbounded.

    Args:
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import RetrainDivergence
        >>> metric = RetrainDivergence()
        >>> metric.update(tensor([[0.9, 0.1]]).log(), tensor([[0.5, 0.5]]).log())
        >>> metric.compute()
        tensor(0.1017)
    """

    higher_is_better: bool = False
    plot_upper_bound: float = math.log(2)

    def update(self, logits: Tensor, retrained_logits: Tensor) -> None:
        """Update state with logits of both models."""
        self._add(logits, retrained_logits)

    def compute(self) -> Tensor:
        """Compute the mean over rows."""
        return self._mean()


class ZeroRetrainForgetting(MeanDivergence):
    r"""Compute ZRF, the zero retrain forgetting metric: the closeness of outputs on forgotten rows to a random model's.

    .. math:: ZRF = 1 - \frac{1}{|F|} \sum_{x \in F} \frac{JS(u(x), t(x))}{\log 2}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``logits`` (:class:`~torch.Tensor`): of the unlearned model, for forgotten rows, shape ``(N, C)``
    - ``random_logits`` (:class:`~torch.Tensor`): of a model with freshly drawn weights, for the same rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``zero_retrain_forgetting`` (:class:`~torch.Tensor`): a scalar from 0 to 1

    **Direction.** The best value is that of a retrained model, which has learnt from other rows and is not random. So
    ``higher_is_better`` is ``None``, although the paper considers a value near 1 good.

    **What it cannot show.** It does not use a retrained model, so it cannot know that model's outputs: a value near 1
    may be over-forgetting. It depends on which random model was drawn: seed it, and use one for all that is compared.

    Source: Chundawat et al., *Can Bad Teaching Induce Forgetting?* (2205.08096). The division by log 2, which the bound
    0 to 1 needs, is ours; published code swaps the arguments of the divergence and is not comparable.

    Args:
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import ZeroRetrainForgetting
        >>> metric = ZeroRetrainForgetting()
        >>> metric.update(tensor([[0.9, 0.1]]).log(), tensor([[0.5, 0.5]]).log())
        >>> metric.compute()
        tensor(0.8532)
    """

    def update(self, logits: Tensor, random_logits: Tensor) -> None:
        """Update state with logits of both models."""
        self._add(logits, random_logits)

    def compute(self) -> Tensor:
        """Compute one minus the mean over rows."""
        return 1 - self._mean() / math.log(2)
