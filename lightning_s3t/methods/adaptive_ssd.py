"""The successors of SSD: one that chooses its threshold, and one that needs no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_s3t.methods.checks import check_count
from lightning_s3t.methods.dampening import Importance, dampen, forgotten_share, importances
from lightning_s3t.methods.editing import EditingMethod, EditSession
from lightning_s3t.methods.registry import register_method
from lightning_s3t.methods.ssd import SSD


@register_method
@dataclass(frozen=True)
class ASSD(EditingMethod):
    """Adaptive selective synaptic dampening (Schoepf et al., arXiv 2402.10098): SSD without parameters to tune.

    As `SSD` with `lam` 1 and the threshold `alpha` at a percentile of the quotients of importances, 100 - ln(1 + 100 f)
    for a share f of rows to be forgotten. A parameter without importance for any row has no quotient.

    Nothing is guaranteed about the result, and having no parameters promises nothing either: how many weights are
    changed follows from the number of rows alone (0.69 % for 1 % of the rows), whatever is in them. It fails as `SSD`
    does. Needs both sets of rows.

    Args:
        batch_size: Rows over which gradients are averaged before they are squared; 1 is the definition.
    """

    name = "assd"

    batch_size: int = 1

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Choose the threshold and shrink the parameters above it.

        Args:
            session: The model and the rows.

        Returns:
            The share of the parameters that were changed, and the threshold.
        """
        of_forgotten, of_all = importances(session, self.batch_size, session.loss)
        alpha = adaptive_alpha(of_forgotten, of_all, forgotten_share(session))
        return {**dampen(session, of_forgotten, of_all, alpha, lam=1.0), "alpha": alpha}


@register_method
@dataclass(frozen=True)
class LFSSD(SSD):
    """Loss-free selective synaptic dampening (Foster et al., arXiv 2402.19308): SSD without labels.

    As `SSD`, with another importance: the mean over rows of the size of the gradient of the squared norm of the
    network's answer.

    Nothing is guaranteed about the result; it fails as `SSD` does, and knowledge from a label alone is not searched
    for. Needs both sets of rows, and a network that answers with logits.

    Args:
        alpha: As in `SSD`.
        lam: As in `SSD`.
        batch_size: Rows over which gradients are averaged before their size is taken; 1 is the definition.
    """

    name = "lfssd"

    @override
    def _importances(self, session: EditSession) -> tuple[Importance, Importance]:
        def norm(batch: Any) -> Tensor:
            return session.answer(batch).logits.square().sum(-1).mean()

        return importances(session, self.batch_size, norm, torch.abs)


def adaptive_alpha(of_forgotten: Importance, of_all: Importance, share: float) -> float:
    """Return the threshold of ASSD.

    Args:
        of_forgotten: The importance for the rows to be forgotten.
        of_all: The importance to all rows.
        share: Share of the rows to be forgotten.

    Returns:
        Infinity where no parameter matters to any row.

    Example:
        >>> adaptive_alpha({"w": torch.tensor([1.0, 4.0, 0.0])}, {"w": torch.tensor([1.0, 2.0, 0.0])}, share=1.0)
        1.95...
    """
    quotients = torch.cat([(of_forgotten[name] / of_all[name]).flatten() for name in of_forgotten])
    quotients = quotients[quotients.isfinite()]
    if len(quotients) == 0:
        return math.inf
    percentile = 100 - math.log(1 + 100 * share)
    return float(np.percentile(quotients.double().cpu().numpy(), percentile))
