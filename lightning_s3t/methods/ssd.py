"""Selective synaptic dampening: parameters that matter more to the forgotten rows than to all rows are shrunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.methods.checks import check_count, check_positive
from lightning_s3t.methods.editing import EditingMethod, EditSession
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class SSD(EditingMethod):
    """Selective synaptic dampening (Foster et al., arXiv 2308.07707, AAAI 2024).

    The importance of a parameter to a set of rows is the diagonal of the Fisher information there: the mean of its
    squared gradients. Where the importance to the forgotten rows is more than `alpha` times that to all rows, the
    parameter is multiplied by min(`lam` * importance to all / importance to the forgotten, 1) (equations 5 and 6).

    Nothing is promised of the result: it is judged by measurements alone. Rows drawn at random are about as important
    to themselves as all rows are, so that hardly a parameter is selected. Every request shrinks parameters further, and
    none grows again: train from scratch now and then. With LoRA the selection depends on how the product of the
    two factors is split between them; `adapter=None` edits the layers themselves.

    Args:
        alpha: How many times more important than to all rows a parameter has to be. Infinity changes nothing.
        lam: How much of the parameter is left.
        batch_size: Rows over which gradients are averaged before they are squared. 1 is the paper's definition; more
            is faster and gives other numbers, so that `alpha` means something else (the authors' code has 64 or 128).

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> SSD(alpha=0.0)
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected argument `alpha` to be a positive number but got 0.0.
    """

    name = "ssd"

    alpha: float = 10.0
    lam: float = 1.0
    batch_size: int = 1

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_positive("lam", self.lam)
        check_count("batch_size", self.batch_size)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Shrink the parameters that are selected.

        Args:
            session: The model and the rows.

        Returns:
            The share of the parameters that were changed.
        """
        of_forgotten = self._importance(session, session.forget(self.batch_size), session.forget_rows)
        of_retained = self._importance(session, session.retain(self.batch_size), session.retain_rows)
        share = session.forget_rows / (session.forget_rows + session.retain_rows)
        changed = total = 0
        with torch.no_grad():
            for name, parameter in session.parameters.items():
                forgotten = of_forgotten[name]
                everyone = share * forgotten + (1 - share) * of_retained[name]
                factor = (self.lam * everyone / forgotten).clamp(max=1.0)
                selected = (forgotten > self.alpha * everyone) & (factor < 1.0)
                parameter.mul_(torch.where(selected, factor, 1.0).to(parameter.dtype))
                changed += int(selected.sum())
                total += parameter.numel()
        return {"changed_share": changed / total}

    def _importance(self, session: EditSession, batches: Iterable[Any], rows: int) -> dict[str, Tensor]:
        """Return the mean of the squared gradients over rows, by parameter; in float32 at least."""
        means = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in session.parameters.items()}
        for number, batch in enumerate(batches):
            share = min(self.batch_size, rows - number * self.batch_size) / rows  # the last batch may be smaller
            gradients = torch.autograd.grad(
                session.loss(batch), list(session.parameters.values()), allow_unused=True, materialize_grads=True
            )
            for mean, gradient in zip(means.values(), gradients, strict=True):
                mean.add_(gradient.to(mean.dtype).square(), alpha=share)
        return means


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
