"""The base class of all metrics here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE


class UnlearningMetric(Metric):
    """A metric with a plot. Its states add up, so that those of processes and of parts of the data can be merged."""

    is_differentiable: bool = False
    # None: the best value is that of a retrained model, and values on both of its sides are worse
    higher_is_better: bool | None = None
    full_state_update: bool = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    def plot(
        self,
        val: Tensor | Sequence[Tensor] | dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None,
        ax: _AX_TYPE | None = None,
    ) -> _PLOT_OUT_TYPE:
        """Plot a single or multiple values from the metric.

        Args:
            val: Either a single result from calling `metric.forward` or `metric.compute` or a list of these results.
                If no value is provided, will automatically call `metric.compute` and plot that result.
            ax: A matplotlib axis object. If provided will add plot to that axis.

        Returns:
            Figure and Axes object

        Raises:
            ModuleNotFoundError: If `matplotlib` is not installed.

        Example:
            >>> from torch import tensor
            >>> from lightning_s3t.metrics import MembershipInference
            >>> metric = MembershipInference(max_fpr=0.5)
            >>> metric.update(tensor([0.9, 0.8, 0.7, 0.1]), tensor([1, 0, 1, 0]))
            >>> figure, axes = metric.plot()
            >>> axes.get_ylabel()
            'MembershipInference'
        """
        return self._plot(val, ax)
