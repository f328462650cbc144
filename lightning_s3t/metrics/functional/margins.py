"""KL divergence of margins (KLoM)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.validation import check_models, check_positive_integer


def kl_divergence_of_margins(
    unlearned: Tensor, retrained: Tensor, num_bins: int = 20, smoothing: float = 1.0, max_margin: float = 100.0
) -> dict[str, Tensor]:
    r"""Compute KLoM: how far the margins of unlearned models are from those of retrained ones, row by row.

    .. math:: KLoM(x) = KL\left(\mathrm{hist}_u(x) \,\|\, \mathrm{hist}_r(x)\right)

    Both histograms share their bins. Unlike the reference code, the last bin holds its upper edge (so that equal
    margins are not lost, which gave a broken model a perfect 0), and both are smoothed by Laplace's rule.

    Source: Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching* (2410.23232).

    Args:
        unlearned: Margins (:func:`logit_score`) of shape `(N, U)` for `N` rows by `U` unlearned models.
        retrained: Margins of shape `(N, R)` by models that never had the forgotten rows.
        num_bins: Number of bins on the range of both.
        smoothing: Added to the count of each bin.
        max_margin: Margins are clipped to plus and minus this.

    Returns:
        `mean` and `percentile_95` over rows, and `null`: the mean for one half of the retrained models against the
        other. **The null is not 0**, and depends on the number of models.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> retrained = torch.randn(5, 100, generator=draw)
        >>> found = kl_divergence_of_margins(3 + torch.randn(5, 100, generator=draw), retrained)
        >>> bool(found["mean"] > 3 * found["null"])
        True
    """
    check_binning(num_bins, smoothing, max_margin)
    rows, null = margin_divergences(unlearned, retrained, num_bins, smoothing, max_margin)
    return summary(rows, null)


def check_binning(num_bins: int, smoothing: float, max_margin: float) -> None:
    """Raise `ConfigurationError` unless these are settings of a histogram."""
    check_positive_integer("num_bins", num_bins)
    for name, value in (("smoothing", smoothing), ("max_margin", max_margin)):
        if not (isinstance(value, float | int) and 0 < value < float("inf")):
            raise ConfigurationError(f"Expected argument `{name}` to be a positive number but got {value}")


def margin_divergences(
    unlearned: Tensor, retrained: Tensor, num_bins: int, smoothing: float, max_margin: float
) -> tuple[Tensor, Tensor]:
    """Return each row's divergence, and that of one half of the retrained models to the other."""
    check_models(2, unlearned=unlearned, retrained=retrained)
    half = retrained.shape[1] // 2
    unlearned, retrained = (margins.clamp(-max_margin, max_margin) for margins in (unlearned, retrained))
    return (
        _divergences(unlearned, retrained, num_bins, smoothing),
        _divergences(retrained[:, :half], retrained[:, half:], num_bins, smoothing),
    )


def _divergences(one: Tensor, two: Tensor, num_bins: int, smoothing: float) -> Tensor:
    both = torch.cat([one, two], dim=1)
    if not len(both):
        return both.new_zeros(0)
    low, high = both.amin(dim=1, keepdim=True), both.amax(dim=1, keepdim=True)
    width = torch.where(high > low, high - low, 1.0)
    p, q = (_histogram((margins - low) / width, num_bins, smoothing) for margins in (one, two))
    return (p * (p / q).log()).sum(dim=1)


def _histogram(places: Tensor, num_bins: int, smoothing: float) -> Tensor:
    # the upper edge of the range belongs to the last bin
    bins = (places * num_bins).long().clamp(0, num_bins - 1)
    counts = places.new_zeros(len(places), num_bins).scatter_add(1, bins, torch.ones_like(places))
    return (counts + smoothing) / (places.shape[1] + smoothing * num_bins)


def summary(rows: Tensor, null: Tensor) -> dict[str, Tensor]:
    """The reported summary of the rows' divergences."""
    if not len(rows):
        raise ConfigurationError("Expected margins of at least one row but got none")
    return {"mean": rows.mean(), "percentile_95": rows.quantile(0.95), "null": null.mean()}
