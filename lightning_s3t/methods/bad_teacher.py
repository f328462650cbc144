"""Bad teacher: on the forgotten rows the model learns to answer like an untrained one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_s3t.methods.checks import check_positive, check_share
from lightning_s3t.methods.descent import DescentMethod, mixed, weighted
from lightning_s3t.methods.distillation import divergence
from lightning_s3t.methods.editing import EditSession, Weights
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class BadTeacher(DescentMethod):
    """Unlearning with two teachers (Chundawat et al., "Can Bad Teaching Induce Forgetting?", arXiv 2205.08096).

    On the forgotten rows the model learns to answer like an incompetent teacher, on the others like its former self:
    the loss of a row is the divergence from its teacher's output. The paper's incompetent teacher has random weights.
    Here the incompetent teacher is the model before training: the pretrained layers and the initial head of the first
    fit. If that head is a good one already (a checkpoint that was trained on the same classes), it is competent, and
    nothing is forgotten: use another method.

    Nothing is guaranteed about the result: answers to the forgotten rows that are less sure than those to unseen rows
    show that these were forgotten. Needs both sets of rows, and a network that answers with logits.

    Args:
        epochs: Number of passes over the rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        retain_share: Share of the rows that stay which is used, drawn for each epoch.
        temperature: Softens the answers that are compared.
    """

    name = "bad_teacher"

    epochs: int = 1
    learning_rate: float = 1e-4
    batch_size: int = 256
    optimizer: Literal["sgd", "adam"] = "adam"
    retain_share: float = 0.3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("retain_share", self.retain_share)
        check_positive("temperature", self.temperature)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Train on the teachers' answers."""
        competent, incompetent = session.weights(), session.untrained()

        def distance(batch: Any, teacher: Weights) -> Tensor:
            with session.holding(teacher):
                target = session.answer(batch).logits
            return divergence(session.answer(batch).logits, target, self.temperature)

        def losses(_: int) -> Iterator[Tensor]:
            parts = list(mixed(session, self.batch_size, self.retain_share))
            forgotten = session.forget.read(forget for forget, _ in parts if forget)
            retained = session.retain.read(retain for _, retain in parts if retain)
            for forget, retain in parts:
                yield weighted(
                    (len(forget), distance(next(forgotten), incompetent) if forget else None),
                    (len(retain), distance(next(retained), competent) if retain else None),
                )

        return self.descend(session, losses)
