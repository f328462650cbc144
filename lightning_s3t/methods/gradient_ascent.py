"""Gradient ascent on the rows to be forgotten, alone or combined with descent on the retained rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_s3t.methods.checks import check_positive, check_share
from lightning_s3t.methods.descent import DescentMethod, endless
from lightning_s3t.methods.editing import EditSession
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class GradientAscent(DescentMethod):
    """Raises the loss of the forgotten rows.

    A reference ("GA"), as in "Unrolling SGD" (Thudi et al., arXiv 2109.13398).

    Nothing is guaranteed about the result. The loss has no upper bound, so too many steps destroy the model for all
    rows; a loss above that of a random guess reveals a forgotten row as much as a low one does. Repeated requests
    diverge. A few related rows restore the forgotten knowledge. Needs only the forgotten rows.

    Args:
        epochs: Number of passes over the forgotten rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        ceiling: Loss of a batch above which it is not raised further; None for no limit. log(classes) is that of a
            random guess.
    """

    name = "gradient_ascent"
    needs = ("forgotten rows",)

    epochs: int = 5
    learning_rate: float = 1e-4
    ceiling: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ceiling is not None:
            check_positive("ceiling", self.ceiling)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Raise the loss of the forgotten rows."""

        def losses(_: int) -> Iterator[Tensor]:
            for batch in session.forget.shuffled(self.batch_size):
                yield -_below(session.loss(batch), self.ceiling)

        return self.descend(session, losses)


@register_method
@dataclass(frozen=True)
class NegGradPlus(DescentMethod):
    """Raises the loss of the forgotten rows while it lowers that of the others.

    "NegGrad+" of "Towards Unbounded Machine Unlearning" (Kurmanji et al., arXiv 2302.09880, section 4): the loss of a
    step is (1 - w) times that of a retained batch, minus w times that of a forgotten one.

    Nothing is guaranteed about the result; it fails as gradient ascent does, later. Needs both sets of rows: an epoch
    is a pass over the retained rows, and the forgotten rows repeat as needed.

    Args:
        epochs: Number of passes over the retained rows.
        learning_rate: Step size.
        batch_size: Rows of each set a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        forget_weight: The weight w of the forgotten rows. With 0 it is `FineTune`.
        ceiling: Loss of a batch from which on it is not raised further; None for no limit.
    """

    name = "neg_grad_plus"

    epochs: int = 10
    forget_weight: float = 0.05
    ceiling: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("forget_weight", self.forget_weight, zero=True)
        if self.ceiling is not None:
            check_positive("ceiling", self.ceiling)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Move the two losses apart."""
        weight = self.forget_weight
        forgotten = endless(session.forget, self.batch_size)

        def losses(_: int) -> Iterator[Tensor]:
            for batch in session.retain.shuffled(self.batch_size):
                loss = (1 - weight) * session.loss(batch)
                if weight > 0:
                    loss = loss - weight * _below(session.loss(next(forgotten)), self.ceiling)
                yield loss

        return self.descend(session, losses)


def _below(loss: Tensor, ceiling: float | None) -> Tensor:
    return loss if ceiling is None else loss.clamp(max=ceiling)
