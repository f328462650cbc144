"""Fine-tuning on the retained rows: the simplest reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_s3t.methods.descent import DescentMethod
from lightning_s3t.methods.editing import EditSession
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class FineTune(DescentMethod):
    """Continues training on the retained rows, in the hope that the model forgets the others.

    A reference, as in "Eternal Sunshine of the Spotless Net" (Golatkar et al., arXiv 1911.04933, section 5).

    Nothing is guaranteed about the result. The accuracies come close to those of a training from scratch, since that is
    good on the forgotten rows too; attacks that look at single rows still find them. Needs the rows that stay.

    Args:
        epochs: Number of passes over the retained rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.

    Example:
        >>> FineTune(epochs=10).guarantee
        'empirical'
    """

    name = "fine_tune"
    needs = ("retained rows",)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Train on the rows that stay."""

        def losses(_: int) -> Iterator[Tensor]:
            return map(session.loss, session.retain.shuffled(self.batch_size))

        return self.descend(session, losses)
