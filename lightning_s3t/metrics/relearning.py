"""Relearning: how quickly a model relearns forgotten rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_s3t.metrics.functional.relearning import anamnesis_index, check_goal, relearn_time
from lightning_s3t.metrics.metric import UnlearningMetric


class RelearnTime(UnlearningMetric):
    r"""Compute after how many steps of training on the forgotten rows a model is as good on them as before it forgot.

    .. math:: RT = \min\{t : a_t(F) \geq (1 - \alpha)\, a_o(F)\}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``accuracies`` (:class:`~torch.Tensor`): on the forgotten rows after 0, 1, 2, ... steps of one run, shape ``(T +
      1,)``. Each update is a run of its own, with another order of rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``relearning`` (``dict``): ``steps``, the mean over runs, and ``censored``, the share of runs that did not get
      there. These count with the steps they had: if ``censored`` is above 0, the true mean is larger than ``steps``

    **Direction.** The best value is a retrained model's, so ``higher_is_better`` is ``None``: less is memory that was
    left, much more is over-forgetting. Compare with :class:`AnamnesisIndex`.

    **What it cannot show.** A model that has been moved far away needs long, whatever it remembers. If a retrained
    model already classifies the forgotten rows correctly, it needs no step, and the metric shows nothing.

    Source: Golatkar et al. (1911.04933); with the margin: Chundawat et al., *Zero-Shot Machine Unlearning*
    (2201.05629).

    Args:
        original_accuracy: On the forgotten rows, of the model before it forgot.
        margin: The share :math:`\alpha` of it that may be missing.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import RelearnTime
        >>> metric = RelearnTime(original_accuracy=1.0)
        >>> metric.update(tensor([0.2, 0.5, 0.97, 0.99]))
        >>> metric.update(tensor([0.2, 0.99]))
        >>> metric.compute()
        {'steps': tensor(1.5000), 'censored': tensor(0.)}
    """

    plot_upper_bound: float | None = None
    steps: list[Tensor]
    reached: list[Tensor]

    def __init__(self, original_accuracy: float, margin: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_goal(original_accuracy, margin)
        self.original_accuracy = original_accuracy
        self.margin = margin
        self.add_state("steps", default=[], dist_reduce_fx="cat")
        self.add_state("reached", default=[], dist_reduce_fx="cat")

    def update(self, accuracies: Tensor) -> None:
        """Update state with the accuracies of one run."""
        steps, reached = relearn_time(accuracies, self.original_accuracy, self.margin)
        self.steps.append(steps[None])
        self.reached.append(reached[None].float())

    def compute(self) -> dict[str, Tensor]:
        """Compute the mean over runs."""
        return {"steps": dim_zero_cat(self.steps).mean(), "censored": 1 - dim_zero_cat(self.reached).mean()}


class AnamnesisIndex(UnlearningMetric):
    r"""Compute AIN, the anamnesis index: a model's relearn time as a multiple of a retrained model's.

    .. math:: AIN = \frac{RT_u + 0.01}{RT_r + 0.01}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``accuracies`` (:class:`~torch.Tensor`): of the unlearned model on the forgotten rows after 0, 1, 2, ... steps of
      one run
    - ``retrained_accuracies`` (:class:`~torch.Tensor`): the same of a retrained model, with the same order of rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``anamnesis`` (``dict``): ``index`` from the mean relearn times over runs, and ``censored`` and
      ``retrained_censored``, the shares of runs that did not get there, whose steps count as they are

    **Direction.** 1 is best, so ``higher_is_better`` is ``None``: less is memory that was left, much more is
    over-forgetting.

    **What it cannot show.** See :class:`RelearnTime`. NaN if retrained models need no step.

    Source: Chundawat et al., *Zero-Shot Machine Unlearning* (2201.05629). The constant is that of common code.

    Args:
        original_accuracy: On the forgotten rows, of the model before it forgot.
        margin: The share of it that may be missing.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import AnamnesisIndex
        >>> metric = AnamnesisIndex(original_accuracy=1.0)
        >>> metric.update(tensor([0.2, 0.5, 0.97]), tensor([0.1, 0.2, 0.5, 0.8, 0.99]))
        >>> metric.compute()["index"]
        tensor(0.5012)
    """

    plot_upper_bound: float | None = None
    steps: list[Tensor]
    reached: list[Tensor]
    retrained_steps: list[Tensor]
    retrained_reached: list[Tensor]

    def __init__(self, original_accuracy: float, margin: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_goal(original_accuracy, margin)
        self.original_accuracy = original_accuracy
        self.margin = margin
        for name in ("steps", "reached", "retrained_steps", "retrained_reached"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, accuracies: Tensor, retrained_accuracies: Tensor) -> None:
        """Update state with the accuracies of one run of both models."""
        times = [relearn_time(run, self.original_accuracy, self.margin) for run in (accuracies, retrained_accuracies)]
        for name, (steps, reached) in zip(("", "retrained_"), times, strict=True):
            getattr(self, f"{name}steps").append(steps[None])
            getattr(self, f"{name}reached").append(reached[None].float())

    def compute(self) -> dict[str, Tensor]:
        """Compute the index from the mean relearn times."""
        return {
            "index": anamnesis_index(dim_zero_cat(self.steps), dim_zero_cat(self.retrained_steps)),
            "censored": 1 - dim_zero_cat(self.reached).mean(),
            "retrained_censored": 1 - dim_zero_cat(self.retrained_reached).mean(),
        }
