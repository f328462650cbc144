"""Accuracy on forgotten, retained and test rows, and its distance to a retrained model's."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.accuracy import (
    ROWS,
    accuracies,
    compared_rows,
    correct_rows,
    gap_interval,
    row_index,
)
from lightning_s3t.metrics.functional.validation import check_confidence_level, check_positive_integer
from lightning_s3t.metrics.metric import UnlearningMetric

Rows = Literal["forgotten", "retained", "test"]


class UnlearningAccuracy(UnlearningMetric):
    r"""Compute the accuracy on forgotten, retained and test rows.

    .. math:: a(X) = \frac{1}{|X|} \sum_{(x, y) \in X} [\hat{y}(x) = y]

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``preds`` (:class:`~torch.Tensor`): classes of shape ``(N,)``, or as floats scores of classes of shape ``(N, C)``
    - ``target`` (:class:`~torch.Tensor`): classes of shape ``(N,)``
    - ``rows`` (``str``): ``"forgotten"``, ``"retained"`` or ``"test"``

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``accuracy`` (``dict``): ``forgotten``, ``retained`` and ``test``, each with ``_lower`` and ``_upper``, the ends
      of Clopper and Pearson's interval over rows; NaN without rows

    **Direction.** Higher is better on retained and test rows. On forgotten rows the best value is a retrained model's,
    which is near the test accuracy and not 0: so ``higher_is_better`` is ``None``. See :class:`AccuracyGap`.

    **What it cannot show.** A model that still knows forgotten rows, and one that could always guess them, have the
    same accuracy.

    Source: Golatkar et al. (1911.04933). Rows are counted, not batches: the mean of batches' accuracies, which
    published code reports, gives rows of the last batch another weight.

    Args:
        confidence_level: Share of intervals that hold the true accuracy.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import UnlearningAccuracy
        >>> metric = UnlearningAccuracy()
        >>> metric.update(tensor([0, 1]), tensor([1, 1]), "forgotten")
        >>> metric.update(tensor([[0.9, 0.1], [0.2, 0.8]]), tensor([0, 1]), "retained")
        >>> found = metric.compute()
        >>> found["forgotten"], found["retained"], found["test"]
        (tensor(0.5000), tensor(1.), tensor(nan))
    """

    correct: Tensor
    total: Tensor

    def __init__(self, confidence_level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_confidence_level(confidence_level)
        self.confidence_level = confidence_level
        self.add_state("correct", default=torch.zeros(len(ROWS), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", default=torch.zeros(len(ROWS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, rows: Rows) -> None:
        """Update state with predictions and targets of one kind of rows."""
        index = row_index(rows)
        self.correct[index] += correct_rows("preds", preds, target).sum()
        self.total[index] += len(target)

    def compute(self) -> dict[str, Tensor]:
        """Compute the three accuracies with their intervals."""
        return accuracies(self.correct, self.total, self.confidence_level)


class ComparedAccuracy(UnlearningMetric):
    """Counts the correct predictions of a model and of retrained ones, by kind of rows."""

    correct: Tensor
    retrained_correct: Tensor
    squares: Tensor
    total: Tensor

    def __init__(self, num_retrained: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integer("num_retrained", num_retrained)
        self.num_retrained = num_retrained
        self.add_state("correct", default=torch.zeros(len(ROWS), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state(
            "retrained_correct", default=torch.zeros(len(ROWS), num_retrained, dtype=torch.long), dist_reduce_fx="sum"
        )
        # whole numbers, so that the order of batches does not matter: R times each row's difference, squared
        self.add_state("squares", default=torch.zeros(len(ROWS), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", default=torch.zeros(len(ROWS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, retrained_preds: Tensor, target: Tensor, rows: Rows) -> None:
        """Update state with predictions, those of retrained models, and targets of one kind of rows."""
        index = row_index(rows)
        correct, retrained = compared_rows(preds, retrained_preds, target)
        if len(retrained) != self.num_retrained:
            raise ConfigurationError(
                f"Expected argument `retrained_preds` to hold predictions of {self.num_retrained} retrained model(s) "
                f"(`num_retrained`) but got {len(retrained)}"
            )
        self.correct[index] += correct.sum()
        self.retrained_correct[index] += retrained.sum(dim=1)
        self.squares[index] += ((correct.long() * self.num_retrained - retrained.long().sum(dim=0)) ** 2).sum()
        self.total[index] += len(target)


class AccuracyGap(ComparedAccuracy):
    r"""Compute how far a model's accuracies are from those of models retrained without the forgotten rows.

    .. math::
        gap(X) = a_u(X) - \frac{1}{R} \sum_r a_r(X), \qquad
        average\_gap = \tfrac{1}{3} \sum_{X \in \{F, R, T\}} |gap(X)|

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``preds`` (:class:`~torch.Tensor`): classes of shape ``(N,)``, or as floats scores of classes of shape ``(N, C)``
    - ``retrained_preds`` (:class:`~torch.Tensor`): the same of a retrained model, or of ``R`` of them with one
      dimension more in front
    - ``target`` (:class:`~torch.Tensor`): classes of shape ``(N,)``
    - ``rows`` (``str``): ``"forgotten"``, ``"retained"`` or ``"test"``

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``gap`` (``dict``): for each kind of rows that was seen ``{rows}_accuracy``, ``{rows}_retrained``, and
      ``{rows}_gap`` with ``_lower`` and ``_upper``; and ``average_gap`` over these kinds

    **Direction.** Nearer to 0 is better: below it, the model is worse than a retrained one, which on forgotten rows is
    over-forgetting. ``higher_is_better`` is ``None``, since gaps have a sign.

    **What it cannot show.** Equal accuracies do not mean equal answers: see :class:`RetrainDivergence`. Gaps are small
    for models that have forgotten nothing where forgotten rows are easy. With fewer than about five retrained models
    the interval does not know how much these differ.

    Source: the gap to retraining: Fan et al., *SalUn* (2310.12508), where membership inference is a fourth term; the
    interval: Bonett and Price, Journal of Educational and Behavioral Statistics 37(4), 2012, with the variance of the
    retrained models' mean added.

    Args:
        num_retrained: Number of retrained models.
        confidence_level: Share of intervals that hold the true gap.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import AccuracyGap
        >>> metric = AccuracyGap(num_retrained=2)
        >>> retrained_preds = tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
        >>> metric.update(tensor([0, 1, 1, 0]), retrained_preds, tensor([0, 1, 1, 1]), "forgotten")
        >>> found = metric.compute()
        >>> found["forgotten_accuracy"], found["forgotten_retrained"], found["forgotten_gap"], found["average_gap"]
        (tensor(0.7500), tensor(0.8750), tensor(-0.1250), tensor(0.1250))
    """

    plot_lower_bound: float = -1.0

    def __init__(self, num_retrained: int = 1, confidence_level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(num_retrained, **kwargs)
        check_confidence_level(confidence_level)
        self.confidence_level = confidence_level

    def compute(self) -> dict[str, Tensor]:
        """Compute the gaps with their intervals."""
        found: dict[str, Tensor] = {}
        gaps = []
        for index, rows in enumerate(ROWS):
            if not self.total[index]:
                continue
            of_rows = gap_interval(
                int(self.total[index]),
                int(self.correct[index]),
                self.retrained_correct[index].tolist(),
                int(self.squares[index]) / self.num_retrained**2,
                self.confidence_level,
            )
            found |= {f"{rows}_{name}": value for name, value in of_rows.items()}
            gaps.append(of_rows["gap"].abs())
        found["average_gap"] = torch.stack(gaps).mean() if gaps else torch.tensor(torch.nan)
        return {name: value.to(self.correct.device) for name, value in found.items()}


class TugOfWar(ComparedAccuracy):
    r"""Compute ToW, the tug of war between forgetting and keeping: one number for three accuracies.

    .. math:: ToW = \prod_{X \in \{F, R, T\}} \left(1 - |a_u(X) - \overline{a_r}(X)|\right)

    Input is that of :class:`AccuracyGap`; all three kinds of rows are required.

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``tug_of_war`` (:class:`~torch.Tensor`): a scalar from 0 to 1; NaN if a kind of rows is missing

    **Direction.** Higher is better; 1 if all three accuracies are the retrained models'.

    **What it cannot show.** A model that has forgotten nothing scores high where forgotten rows are easy. Errors of
    both signs count equally. It has no interval: see :class:`AccuracyGap` for those of its parts.

    Source: Zhao et al., *What makes unlearning hard and what to do about it* (2406.01257).

    Args:
        num_retrained: Number of retrained models, whose mean accuracy is compared.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import TugOfWar
        >>> metric = TugOfWar()
        >>> metric.update(tensor([0, 1]), tensor([0, 0]), tensor([0, 1]), "forgotten")
        >>> metric.update(tensor([0, 1]), tensor([0, 1]), tensor([0, 1]), "retained")
        >>> metric.update(tensor([0, 0]), tensor([0, 1]), tensor([0, 1]), "test")
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better: bool = True

    def compute(self) -> Tensor:
        """Compute the product."""
        accuracy = self.correct / self.total
        retrained = self.retrained_correct.float().mean(dim=1) / self.total
        return (1 - (accuracy - retrained).abs()).prod()
