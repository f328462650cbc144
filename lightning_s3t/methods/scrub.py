"""SCRUB: a student that disobeys its teacher on the forgotten rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods.checks import check_nonnegative, check_positive
from lightning_s3t.methods.descent import DescentMethod
from lightning_s3t.methods.distillation import divergence
from lightning_s3t.methods.editing import EditSession
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class SCRUB(DescentMethod):
    """SCRUB (Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv 2302.09880).

    The original model is the teacher, and d(x) is the divergence of the student's output from the teacher's. In the
    first epochs a pass over the forgotten rows raises d; then, in every epoch, a pass over the others lowers `alpha` d
    + `gamma` loss.

    Nothing is guaranteed about the result. The divergence from the teacher has no upper bound: too many epochs of
    ascent degrade all rows, and an error that is too high reveals that a row was forgotten. The paper's rewinding to an
    epoch (SCRUB+R) is not built. Needs both sets of rows, and a network that answers with logits.

    Args:
        epochs: Number of passes over the retained rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        ascent_epochs: Number of epochs that start with the forgotten rows.
        alpha: Weight of the divergence from the teacher on the rows that stay.
        gamma: Weight of the training loss on them.
        temperature: Softens the answers that are compared.
    """

    name = "scrub"

    epochs: int = 10
    learning_rate: float = 5e-4
    optimizer: Literal["sgd", "adam"] = "adam"
    ascent_epochs: int = 3
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.ascent_epochs
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= self.epochs:
            raise ConfigurationError(
                f"Expected argument `ascent_epochs` to be a number from 0 to `epochs`, {self.epochs}, but got "
                f"{steps!r}."
            )
        check_nonnegative("alpha", self.alpha)
        check_nonnegative("gamma", self.gamma)
        check_positive("temperature", self.temperature)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Train the student."""
        teacher = session.weights()

        def taught(batch: Any) -> Tensor:
            with session.holding(teacher):
                return session.answer(batch).logits

        def losses(epoch: int) -> Iterator[Tensor]:
            if epoch < self.ascent_epochs:
                for batch in session.forget.shuffled(self.batch_size):
                    target = taught(batch)
                    yield -divergence(session.answer(batch).logits, target, self.temperature)
            for batch in session.retain.shuffled(self.batch_size):
                target = taught(batch)
                loss, logits = session.answer(batch)
                yield self.gamma * loss + self.alpha * divergence(logits, target, self.temperature)

        return self.descend(session, losses)
