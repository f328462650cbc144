"""Selective synaptic dampening: parameters that matter more to the forgotten rows than to all rows are shrunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_s3t.methods.checks import check_count, check_positive
from lightning_s3t.methods.dampening import Importance, dampen, importances
from lightning_s3t.methods.editing import EditingMethod, EditSession
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class SSD(EditingMethod):
    """Selective synaptic dampening (Foster et al., arXiv 2308.07707, AAAI 2024).

    The importance of a parameter to a set of rows is the diagonal of the Fisher information there: the mean of its
    squared gradients. Where the importance to the forgotten rows is more than `alpha` times that to all rows, the
    parameter is multiplied by min(`lam` * importance to all / importance to the forgotten, 1) (equations 5 and 6).

    Nothing is guaranteed about the result: it is judged by measurements alone. Rows drawn at random are about as
    important to themselves as all rows are, so that hardly a parameter is selected. Every request shrinks parameters
    further, and none grows again: train from scratch now and then. With LoRA the selection depends on how the product
    of the two factors is split between them; `adapter=None` edits the layers themselves.

    Args:
        alpha: The factor by which a parameter has to be more important than for all rows. Infinity changes nothing.
        lam: The factor of the parameter's remaining share.
        batch_size: Rows over which gradients are averaged before they are squared. 1 is the paper's definition; larger
            batches are faster but change the importances, so `alpha` has a different meaning (the authors' code has 64
            or 128).

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
        of_forgotten, of_all = self._importances(session)
        return dampen(session, of_forgotten, of_all, self.alpha, self.lam)

    def _importances(self, session: EditSession) -> tuple[Importance, Importance]:
        return importances(session, self.batch_size, session.loss)
