"""KL divergence of margins (KLoM)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lightning_s3t.metrics.functional.margins import check_binning, margin_divergences, summary
from lightning_s3t.metrics.metric import UnlearningMetric


class KLDivergenceOfMargins(UnlearningMetric):
    r"""Compute KLoM: how far the margins of unlearned models are from those of retrained ones, row by row.

    .. math:: KLoM(x) = KL\left(\mathrm{hist}_u(x) \,\|\, \mathrm{hist}_r(x)\right)

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``unlearned`` (:class:`~torch.Tensor`): margins of shape ``(N, U)`` for ``N`` rows by ``U`` unlearned models;
      :func:`~lightning_s3t.metrics.functional.logit_score` is the margin
    - ``retrained`` (:class:`~torch.Tensor`): margins of shape ``(N, R)`` by models that never had the forgotten rows

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``klom`` (``dict``): ``mean`` and ``percentile_95`` over rows, and ``null``: the mean for one half of the
      retrained models against the other

    **Direction.** Lower is better, down to about ``null``, which is not 0.

    **What it cannot show.** Margins of single outputs do not show what several rows reveal together. Values depend on
    the number of models, bins and the smoothing: compare only those with the same. The null is of halves: as many
    models as ``mean`` is made of would give another value, a smaller one if there are many.

    Source: Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching* (2410.23232). Unlike in
    the reference code, the last bin holds its upper edge (equal margins were lost, and gave a broken model a perfect
    0), and histograms are smoothed by Laplace's rule.

    Args:
        num_bins: Number of bins on the range of both.
        smoothing: Added to the count of each bin.
        max_margin: Margins are clipped to plus and minus this.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from lightning_s3t.metrics import KLDivergenceOfMargins
        >>> draw = torch.Generator().manual_seed(0)
        >>> metric = KLDivergenceOfMargins()
        >>> metric.update(3 + torch.randn(5, 100, generator=draw), torch.randn(5, 100, generator=draw))
        >>> found = metric.compute()
        >>> bool(found["mean"] > 3 * found["null"])
        True
    """

    higher_is_better: bool = False
    plot_upper_bound: float | None = None
    rows: list[Tensor]
    null: list[Tensor]

    def __init__(self, num_bins: int = 20, smoothing: float = 1.0, max_margin: float = 100.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_binning(num_bins, smoothing, max_margin)
        self.num_bins = num_bins
        self.smoothing = smoothing
        self.max_margin = max_margin
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("null", default=[], dist_reduce_fx="cat")

    def update(self, unlearned: Tensor, retrained: Tensor) -> None:
        """Update state with margins of unlearned and of retrained models."""
        rows, null = margin_divergences(unlearned, retrained, self.num_bins, self.smoothing, self.max_margin)
        self.rows.append(rows)
        self.null.append(null)

    def compute(self) -> dict[str, Tensor]:
        """Compute mean, percentile and null."""
        return summary(dim_zero_cat(self.rows), dim_zero_cat(self.null))
