"""Shared code of methods that shrink parameters by their importance for two sets of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.methods.editing import EditRows, EditSession, cut

Importance = Mapping[str, Tensor]
"""How much each entry of each parameter matters to a set of rows, by name; in float32 at least."""


def importance(
    session: EditSession,
    rows: EditRows,
    size: int,
    objective: Callable[[Any], Tensor],
    measure: Callable[[Tensor], Tensor] = torch.square,
) -> dict[str, Tensor]:
    """Return the mean over rows of a measure of gradients, by parameter.

    Args:
        session: The model.
        rows: The rows.
        size: Rows over which a gradient is averaged before it is measured; a smaller last batch counts by its rows.
        objective: Returns a batch's mean over rows of the differentiated quantity.
        measure: The measure of a gradient.
    """
    means = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in session.parameters.items()}
    for batch, numbers in zip(rows.batches(size), cut(range(len(rows)), size), strict=True):
        gradients = torch.autograd.grad(
            objective(batch), list(session.parameters.values()), allow_unused=True, materialize_grads=True
        )
        for mean, gradient in zip(means.values(), gradients, strict=True):
            mean.add_(measure(gradient.to(mean.dtype)), alpha=len(numbers) / len(rows))
    return means


def importances(
    session: EditSession,
    size: int,
    objective: Callable[[Any], Tensor],
    measure: Callable[[Tensor], Tensor] = torch.square,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the importance for the rows to be forgotten, and for all rows.

    Args:
        session: The model and the rows.
        size: As for `importance`, the same for both.
        objective: As for `importance`.
        measure: As for `importance`.
    """
    of_forgotten = importance(session, session.forget, size, objective, measure)
    of_retained = importance(session, session.retain, size, objective, measure)
    share = forgotten_share(session)
    of_all = {name: share * forgotten + (1 - share) * of_retained[name] for name, forgotten in of_forgotten.items()}
    return of_forgotten, of_all


def forgotten_share(session: EditSession) -> float:
    """Return the share of the rows to be forgotten.

    Args:
        session: The rows.
    """
    return len(session.forget) / (len(session.forget) + len(session.retain))


@torch.no_grad()
def dampen(
    session: EditSession, of_forgotten: Importance, of_all: Importance, alpha: float, lam: float
) -> dict[str, Any]:
    """Shrink the parameters that matter more to the forgotten rows.

    Args:
        session: The model.
        of_forgotten: The importance for the rows to be forgotten.
        of_all: The importance to all rows.
        alpha: The factor by which a parameter has to be more important.
        lam: The factor of the remaining share: the parameter is multiplied by min(`lam` * importance to all / to the
            forgotten, 1).

    Returns:
        The share of the parameters that were changed.
    """
    changed = total = 0
    for name, parameter in session.parameters.items():
        forgotten, everyone = of_forgotten[name], of_all[name]
        factor = (lam * everyone / forgotten).clamp(max=1.0)
        selected = (forgotten > alpha * everyone) & (factor < 1.0)
        parameter.mul_(torch.where(selected, factor, 1.0).to(parameter.dtype))
        changed += int(selected.sum())
        total += parameter.numel()
    return {"changed_share": changed / total}


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
