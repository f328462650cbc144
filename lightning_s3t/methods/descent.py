"""The loop of methods that take optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_s3t.methods.checks import check_choice, check_count, check_nonnegative, check_positive
from lightning_s3t.methods.editing import EditingMethod, EditRows, EditSession

OptimizerName = Literal["sgd", "adam"]

Masks = Mapping[str, Tensor]
"""For each parameter, by name, which of its entries may change: booleans of its shape."""


@dataclass(frozen=True)
class DescentMethod(EditingMethod):
    """A method that edits by optimizer steps on its own losses.

    The optimizer is new: neither the script's optimizer nor its state is used. The model stays in evaluation mode, so
    dropout is off and running statistics are those of the training; many published scripts use dropout and update the
    statistics.

    Args:
        epochs: Number of passes over the rows.
        learning_rate: Step size.
        batch_size: Rows a step.
        optimizer: "sgd" or "adam".
        momentum: Of "sgd".
        weight_decay: As torch's optimizers have it.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    epochs: int = 5
    learning_rate: float = 0.01
    batch_size: int = 64
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_positive("learning_rate", self.learning_rate)
        check_count("batch_size", self.batch_size)
        check_choice("optimizer", self.optimizer, ("sgd", "adam"))
        check_nonnegative("momentum", self.momentum)
        check_nonnegative("weight_decay", self.weight_decay)

    def descend(
        self,
        session: EditSession,
        losses: Callable[[int], Iterator[Tensor]],
        masks: Callable[[], Masks] | None = None,
    ) -> dict[str, Any]:
        """Take a step for each loss.

        Args:
            session: The model and the rows.
            losses: Takes the number of an epoch, from 0, and yields the losses of its steps. Each is computed after the
                previous step.
            masks: Returns, before each step, the entries that it may change. The others are restored after the step,
                since weight decay and momentum move weights even without a gradient.

        Returns:
            Number of steps.
        """
        parameters = list(session.parameters.values())
        optimizer = self._make_optimizer(parameters)
        steps = 0
        for epoch in range(self.epochs):
            for loss in losses(epoch):
                optimizer.zero_grad()
                loss.backward()
                if masks is None:
                    optimizer.step()
                else:
                    masked, before = masks(), session.weights()
                    optimizer.step()
                    put_back(session, masked, before)
                steps += 1
        optimizer.zero_grad()
        return {"steps": steps}

    def _make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay)


@torch.no_grad()
def put_back(session: EditSession, masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Restore the earlier values of entries that may not change.

    Args:
        session: The model.
        masks: The entries that may change.
        weights: The earlier values.
    """
    for name, parameter in session.parameters.items():
        parameter.copy_(torch.where(masks[name], parameter, weights[name]))


def endless(rows: EditRows, size: int) -> Iterator[Any]:
    """Read rows again and again, each time in another order.

    Args:
        rows: The rows.
        size: Rows per batch; the last of a pass may have fewer.
    """
    while True:
        yield from rows.shuffled(size)


def mixed(session: EditSession, size: int, retain_share: float = 1.0) -> Iterator[tuple[list[int], list[int]]]:
    """Divide both sets of shuffled rows into steps, each row once and the forgotten ones spread evenly.

    Args:
        session: The rows.
        size: Rows a step, of both together.
        retain_share: Share of the rows that stay which takes part.

    Yields:
        The indices of a step's rows to forget and of its retained rows; either may be empty.
    """
    forget, retain = session.forget.shuffle(), session.retain.shuffle()
    retain = retain[: max(1, round(retain_share * len(retain)))]
    steps = -(-(len(forget) + len(retain)) // size)
    for step in range(steps):
        yield _part(forget, step, steps), _part(retain, step, steps)


def weighted(*parts: tuple[int, Tensor | None]) -> Tensor:
    """Return the mean over rows of several batches' mean losses.

    Args:
        parts: For each batch its number of rows, and its mean loss; None without rows.
    """
    rows = sum(count for count, _ in parts)
    losses = [loss if count == rows else loss * (count / rows) for count, loss in parts if loss is not None]
    return sum(losses[1:], losses[0])


def _part(order: list[int], step: int, steps: int) -> list[int]:
    return order[step * len(order) // steps : (step + 1) * len(order) // steps]
