"""Training the forgotten rows on wrong labels: all weights, the salient ones, or some at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_s3t.methods.checks import check_choice, check_share
from lightning_s3t.methods.descent import DescentMethod, Masks, mixed, weighted
from lightning_s3t.methods.editing import EditSession, cut
from lightning_s3t.methods.labels import (
    LabelPlace,
    check_label_place,
    draw_shifts,
    labels_of,
    with_labels,
    wrong_labels,
)
from lightning_s3t.methods.registry import register_method

Schedule = Literal["mixed", "forget_first"]


class _WrongLabels:
    """The losses of forgotten rows on wrong labels, which are drawn once for each row."""

    def __init__(self, session: EditSession, place: LabelPlace) -> None:
        self._session = session
        self._place = place
        with torch.no_grad():
            self._classes = session.answer(next(session.forget.batches(1))).logits.shape[-1]
        self._shifts = draw_shifts(len(session.forget), self._classes, session.generator("wrong labels"))

    def losses(self, batches: list[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the loss of each batch of row indices."""
        for rows, batch in zip(batches, self._session.forget.read(batches), strict=True):
            labels = wrong_labels(labels_of(batch, self._place), self._shifts[rows], self._classes)
            yield self._session.loss(with_labels(batch, labels, self._place))


@register_method
@dataclass(frozen=True)
class RandomLabels(DescentMethod):
    """Trains the forgotten rows on wrong labels and the others on their own.

    "Random labels", the unlearning of "Amnesiac Machine Learning" (Graves et al., arXiv 2010.10981, section 4.1). A
    row's wrong label is drawn once, evenly from all classes but the true one.

    Nothing is guaranteed about the result. The model learns wrong labels for the forgotten rows, which is detectable;
    the errors accumulate over requests. Needs both sets of rows, and one class a row.

    Args:
        epochs: Number of passes over the rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        schedule: "mixed" has rows of both sets in a step, "forget_first" goes through the forgotten rows first in each
            epoch: published scripts have both under this name.
        labels: The key or the number of the labels in a batch, if they are not found.
    """

    name = "random_labels"

    epochs: int = 3
    learning_rate: float = 1e-4
    optimizer: Literal["sgd", "adam"] = "adam"
    schedule: Schedule = "mixed"
    labels: LabelPlace = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("schedule", self.schedule, ("mixed", "forget_first"))
        check_label_place(self.labels)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Train on wrong labels."""
        return self.descend(session, self._losses(session))

    def _losses(self, session: EditSession) -> Callable[[int], Iterator[Tensor]]:
        wrong = _WrongLabels(session, self.labels)

        def losses(_: int) -> Iterator[Tensor]:
            if self.schedule == "forget_first":
                yield from wrong.losses(list(cut(session.forget.shuffle(), self.batch_size)))
                yield from map(session.loss, session.retain.shuffled(self.batch_size))
                return
            parts = list(mixed(session, self.batch_size))
            of_forgotten = wrong.losses([forget for forget, _ in parts if forget])
            of_retained = map(session.loss, session.retain.read(retain for _, retain in parts if retain))
            for forget, retain in parts:
                yield weighted(
                    (len(forget), next(of_forgotten) if forget else None),
                    (len(retain), next(of_retained) if retain else None),
                )

        return losses


@register_method
@dataclass(frozen=True)
class SalUn(RandomLabels):
    """Saliency-based unlearning: random labels on the weights that matter to the forgotten rows.

    SalUn (Fan et al., arXiv 2310.12508). The weights are the share of all weights for which the gradient of the
    forgotten rows' loss is largest. The others stay bitwise unchanged, even with weight decay and momentum.

    Nothing is guaranteed about the result; it fails as `RandomLabels` does. Needs both sets of rows, and one class a
    row.

    Args:
        epochs: Number of passes over the rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        schedule: As for `RandomLabels`.
        labels: The key or the number of the labels in a batch, if they are not found.
        share: Share of the weights that is changed. With 1 it is `RandomLabels`.
    """

    name = "salun"

    epochs: int = 10
    learning_rate: float = 0.013
    optimizer: Literal["sgd", "adam"] = "sgd"
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Train the salient weights on wrong labels.

        Args:
            session: The model and the rows.

        Returns:
            Number of steps, and the share of the weights that could change.
        """
        masks = largest(self._saliency(session), self.share)
        changed = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        return {**self.descend(session, self._losses(session), lambda: masks), "salient_share": changed}

    def _saliency(self, session: EditSession) -> dict[str, Tensor]:
        """Return the sizes of the gradients of the loss over all forgotten rows, by parameter."""
        sums = {name: torch.zeros_like(p) for name, p in session.parameters.items()}
        for rows in cut(range(len(session.forget)), self.batch_size):
            (batch,) = session.forget.read([rows])
            gradients = torch.autograd.grad(
                session.loss(batch) * len(rows),
                list(session.parameters.values()),
                allow_unused=True,
                materialize_grads=True,
            )
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient
        return {name: total.abs() for name, total in sums.items()}


@register_method
@dataclass(frozen=True)
class LabelFlipping(DescentMethod):
    """Trains a part of each layer, drawn at every step, on wrong labels of the forgotten rows.

    The layer-wise partial form of label flipping in "Efficient Knowledge Deletion from Trained Models through
    Layer-wise Partial Machine Unlearning" (arXiv 2403.07611). The paper's code is not public: that the part is drawn
    for each parameter tensor and step, and a row's wrong label once, is this implementation's reading.

    Nothing is guaranteed about the result; it fails as random labels do, and without the rows that stay it costs more
    of the accuracy on these. Needs the forgotten rows alone, and one class a row.

    Args:
        epochs: Number of passes over the forgotten rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.
        share: Share of each layer that a step may change; 1 for all of it.
        labels: The key or the number of the labels in a batch, if they are not found.
    """

    name = "label_flipping"
    needs = ("forgotten rows",)

    epochs: int = 1
    momentum: float = 0.0
    share: float = 0.5
    labels: LabelPlace = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)
        check_label_place(self.labels)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Train parts of the layers on wrong labels."""
        wrong = _WrongLabels(session, self.labels)
        generator = session.generator("parts of layers")

        def losses(_: int) -> Iterator[Tensor]:
            return wrong.losses(list(cut(session.forget.shuffle(), self.batch_size)))

        def masks() -> Masks:
            return {name: self._draw(parameter, generator) for name, parameter in session.parameters.items()}

        return self.descend(session, losses, masks if self.share < 1 else None)

    def _draw(self, parameter: Tensor, generator: torch.Generator) -> Tensor:
        count = parameter.numel()
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count, generator=generator)[: max(1, round(self.share * count))]] = True
        return mask.reshape(parameter.shape).to(parameter.device)


def largest(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return which entries of tensors are among the largest of all.

    Args:
        scores: Scores by name.
        share: Share of all entries; of equal scores the first are taken.

    Example:
        >>> largest({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0])}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.sort(descending=True, stable=True).indices[: round(share * len(flat))]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
