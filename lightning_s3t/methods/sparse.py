"""Sparsity before and during fine-tuning on the retained rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.methods.checks import check_nonnegative, check_share
from lightning_s3t.methods.descent import DescentMethod, Masks
from lightning_s3t.methods.editing import EditSession
from lightning_s3t.methods.random_labels import largest
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class Sparse(DescentMethod):
    """Fine-tunes on the rows that stay with an l1 penalty, or after pruning.

    "Model Sparsity Can Simplify Machine Unlearning" (Jia et al., arXiv 2304.04934). With `gamma` it is the paper's
    "l1-sparse MU": the loss of a step is the training loss plus gamma_t times the sum of the sizes of all parameters
    that are trained, where gamma_t falls linearly from `gamma` in the first epoch. With `prune` it is its "prune first,
    then unlearn", by fine-tuning: the smallest of all weights (tensors of two dimensions and more) become zero and stay
    so.

    Nothing is guaranteed about the result; it fails as `FineTune` does. The choice of pruned weights was learnt with
    the forgotten rows, and stays. The penalty makes weights small, not zero. With adapters it bears on these alone.
    Needs the rows that stay.

    Args:
        epochs: Number of passes over the retained rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        gamma: Weight of the penalty. 1e-5 to 5e-4 is usual; with 0 and no pruning it is `FineTune`.
        prune: Share of the weights that is pruned first.
    """

    name = "sparse"
    needs = ("retained rows",)

    epochs: int = 10
    gamma: float = 5e-4
    prune: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("gamma", self.gamma)
        check_share("prune", self.prune, zero=True)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Prune, and train on the rows that stay.

        Args:
            session: The model and the rows.

        Returns:
            Number of steps, and the share of the parameters that are zero.
        """
        masks = self._prune(session) if self.prune > 0 else None

        def losses(epoch: int) -> Iterator[Tensor]:
            gamma = self.gamma * (1 - epoch / self.epochs)
            for batch in session.retain.shuffled(self.batch_size):
                loss = session.loss(batch)
                if gamma > 0:
                    loss = loss + gamma * sum(parameter.abs().sum() for parameter in session.parameters.values())
                yield loss

        report = self.descend(session, losses, None if masks is None else lambda: masks)
        zeros = sum(int((parameter == 0).sum()) for parameter in session.parameters.values())
        return {**report, "zero_share": zeros / sum(parameter.numel() for parameter in session.parameters.values())}

    @torch.no_grad()
    def _prune(self, session: EditSession) -> Masks:
        sizes = {name: p.abs() for name, p in session.parameters.items() if p.ndim > 1}
        kept = largest(sizes, 1 - self.prune) if sizes else {}
        for name, mask in kept.items():
            session.parameters[name].mul_(mask)
        everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in session.parameters.items()}
        return {**everything, **kept}
