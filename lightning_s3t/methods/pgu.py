"""PGU: steps on the forgotten rows that preserve the outputs for the retained rows to first order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s3t.errors import UnsupportedError
from lightning_s3t.methods.checks import check_count, check_nonnegative, check_positive, check_share
from lightning_s3t.methods.editing import EditingMethod, EditSession
from lightning_s3t.methods.labels import LabelPlace, check_label_place, labels_of
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class PGU(EditingMethod):
    """Projected-gradient unlearning (Hoang et al., "Learn to Unlearn for Deep Neural Networks", arXiv 2312.04095).

    The gradient of a layer's weight is in the span of the layer's inputs. Steps on the forgotten rows are projected off
    the span of the retained rows' inputs: its leading directions, up to a share of the singular values. Linear and
    convolutional layers are changed, by plain gradient descent; biases and everything else stay unchanged. The loss of
    a forgotten row is -log(1 - p + `offset`) - `entropy_weight` * H for its label's probability p and the entropy H of
    the answer.

    The paper keeps the inputs' second moments from training and subtracts those of the forgotten; here they are
    computed from the retained rows, and nothing is stored. It stops when the accuracy on held-out rows is above that on
    the forgotten, and keeps the nearer one of the last two models: give the accuracy on held-out rows as
    `stop_accuracy`.

    Nothing is guaranteed about the result. The outputs for the retained rows are preserved only to first order, and
    only in the preserved directions. With a large share no direction is free and nothing is forgotten; with a small one
    all rows suffer. Knowledge that forgotten rows share with others is never removed. Needs both sets of rows, one
    class a row, and for each layer a square matrix of its number of inputs.

    Args:
        share: Share of the sum of the singular values that the preserved directions have, at most.
        epochs: The largest number of passes over the forgotten rows.
        learning_rate: Step size at first.
        last_learning_rate: The final step size; it decays exponentially in between.
        batch_size: Rows a step.
        offset: Keeps the loss finite.
        entropy_weight: Weight of the entropy.
        stop_accuracy: Stop when the accuracy on the forgotten rows is below it, and keep this epoch's model or the one
            before, whichever is nearer; None to go through all epochs.
        labels: The key or the number of the labels in a batch, if they are not found.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    name = "pgu"

    share: float = 0.95
    epochs: int = 100
    learning_rate: float = 0.05
    last_learning_rate: float = 0.01
    batch_size: int = 128
    offset: float = 0.05
    entropy_weight: float = 0.2
    stop_accuracy: float | None = None
    labels: LabelPlace = None

    def __post_init__(self) -> None:
        check_share("share", self.share)
        check_count("epochs", self.epochs)
        check_positive("learning_rate", self.learning_rate)
        check_positive("last_learning_rate", self.last_learning_rate)
        check_count("batch_size", self.batch_size)
        check_positive("offset", self.offset)
        check_nonnegative("entropy_weight", self.entropy_weight)
        if self.stop_accuracy is not None:
            check_share("stop_accuracy", self.stop_accuracy, zero=True)
        check_label_place(self.labels)

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Take steps orthogonal to the directions that the retained rows use.

        Args:
            session: The model and the rows.

        Returns:
            Number of epochs that led to the model, and the number of preserved directions of each layer.

        Raises:
            UnsupportedError: None of the layers is linear or convolutional.
        """
        layers = find_layers_with_inputs(session)
        if not layers:
            raise UnsupportedError(
                f"{self.name} changes the weights of linear and two-dimensional convolutional layers, but no "
                "parameter that may change belongs to one. Use another method."
            )
        preserved = {
            name: leading_directions(moment, self.share) for name, moment in self._moments(session, layers).items()
        }
        done, distance = 0, self._distance(session)
        while done < self.epochs and distance >= 0:
            if math.isfinite(distance):
                previous, before = distance, session.weights()
            done += 1
            rate = self.learning_rate * (self.last_learning_rate / self.learning_rate) ** (done / self.epochs)
            for batch in session.forget.shuffled(self.batch_size):
                self._step(session, layers, preserved, batch, rate)
            distance = self._distance(session)
        if done and distance < 0 and previous < -distance:
            done -= 1
            with torch.no_grad():
                for name, parameter in session.parameters.items():
                    parameter.copy_(before[name])
        directions = {name: [basis.shape[1], basis.shape[0]] for name, basis in preserved.items()}
        return {"epochs": done, "preserved_directions": directions}

    def _step(
        self,
        session: EditSession,
        layers: Mapping[str, nn.Module],
        preserved: Mapping[str, Tensor],
        batch: Any,
        rate: float,
    ) -> None:
        weights = [session.parameters[name] for name in layers]
        gradients = torch.autograd.grad(self._loss(session, batch), weights, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for name, weight, gradient in zip(layers, weights, gradients, strict=True):
                step = project_off(gradient.double(), preserved[name])
                weight.add_(step.to(weight.dtype), alpha=-rate)

    def _loss(self, session: EditSession, batch: Any) -> Tensor:
        logits = session.answer(batch).logits
        log_p = F.log_softmax(logits, -1)
        of_label = log_p.gather(-1, labels_of(batch, self.labels).unsqueeze(-1)).squeeze(-1).exp()
        entropy = -(log_p.exp() * log_p).sum(-1)
        return (-torch.log(1 - of_label + self.offset) - self.entropy_weight * entropy).mean()

    @torch.no_grad()
    def _distance(self, session: EditSession) -> float:
        """Return how far the accuracy on the forgotten rows is above the one to stop at; infinite without one."""
        if self.stop_accuracy is None:
            return math.inf
        right = 0
        for batch in session.forget.batches(self.batch_size):
            right += int((session.answer(batch).logits.argmax(-1) == labels_of(batch, self.labels)).sum())
        return right / len(session.forget) - self.stop_accuracy

    @torch.no_grad()
    def _moments(self, session: EditSession, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return the sums of a a^T over inputs a of layers, from the rows that stay, by their weights' names."""
        moments: dict[str, Tensor] = {}
        with _noting_inputs(layers) as inputs:
            for batch in session.retain.batches(self.batch_size):
                session.loss(batch)
                for name, found in inputs.items():
                    for rows in found:
                        moment = rows.T @ rows
                        moments[name] = moments[name] + moment if name in moments else moment
                    found.clear()
        missing = [name for name in layers if name not in moments]
        if missing:
            raise UnsupportedError(
                f"{self.name} needs the inputs of {', '.join(missing)}, but the network reads these weights without "
                "calling the layer. Use another method."
            )
        return moments


def find_layers_with_inputs(session: EditSession) -> dict[str, nn.Module]:
    """Return the linear and two-dimensional convolutional layers whose weights may change, by the weight's name.

    Args:
        session: The model.
    """
    named = {id(parameter): name for name, parameter in session.parameters.items()}
    return {
        named[id(layer.weight)]: layer
        for layer in session.module.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and id(layer.weight) in named
    }


def leading_directions(moment: Tensor, share: float) -> Tensor:
    """Return the directions in which inputs vary most.

    Args:
        moment: The sum of a a^T over inputs a, shape `[inputs, inputs]`.
        share: Their largest share of the sum of the singular values; with 1, all non-zero ones.

    Returns:
        Orthonormal columns, shape `[inputs, directions]`.

    Example:
        >>> leading_directions(torch.diag(torch.tensor([9.0, 1.0, 0.0])), share=0.75).shape
        torch.Size([3, 1])
    """
    values, directions = torch.linalg.eigh(moment.double())
    singular = values.clamp(min=0).sqrt().flip(0)
    rounding = (len(singular) * torch.finfo(torch.float64).eps) ** 0.5  # of a root of an eigenvalue
    used = int((singular > singular.max() * rounding).sum())
    if share < 1:
        shares = singular.cumsum(0) / singular.sum()
        used = min(used, int((shares <= share).sum()))
    return directions.flip(1)[:, :used]


def project_off(gradient: Tensor, preserved: Tensor) -> Tensor:
    """Return the part of a weight's gradient that is orthogonal to directions of its inputs.

    Args:
        gradient: Shape `[outputs, inputs]`, or a kernel's. The groups of a convolution share their directions.
        preserved: Orthonormal columns, shape `[inputs, directions]`.
    """
    flat = gradient.flatten(1)
    return (flat - (flat @ preserved) @ preserved.T).reshape(gradient.shape)


@contextmanager
def _noting_inputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Note, within the block, the inputs of layers: one row for each product with the weight; by the weight's name."""
    noted: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str, layer: nn.Module, given: Tensor) -> None:
        noted[name].append(_rows(layer, given.detach()).double())

    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: note(name, module, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def _rows(layer: nn.Module, given: Tensor) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return given.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = F.unfold(F.pad(given, _padding(layer), mode), layer.kernel_size, layer.dilation, 0, layer.stride)
    size = layer.weight[0].numel()  # of the inputs of a group
    return patches.unflatten(1, (-1, size)).movedim(2, 3).flatten(0, 2)


def _padding(layer: nn.Conv2d) -> list[int]:
    """Return the padding on each side, the last dimension first."""
    if layer.padding == "same":
        sums = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [side for total in reversed(sums) for side in (total // 2, total - total // 2)]
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    return [side for total in reversed(layer.padding) for side in (total, total)]  # type: ignore[misc]
