"""Influence: one step that removes the effect of rows on the optimum, from their gradients and the curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods.checks import check_choice, check_count, check_nonnegative, check_positive
from lightning_s3t.methods.editing import EditingMethod, EditRows, EditSession, cut
from lightning_s3t.methods.method import Need
from lightning_s3t.methods.registry import register_method

Order = Literal["first", "second"]


@register_method
@dataclass(frozen=True)
class Influence(EditingMethod):
    """Unlearning of features and labels by influence (Warnecke et al., arXiv 2108.11577), for whole rows.

    With G the sum of the gradients of the forgotten rows' losses, and of their part of the l2 term: the first-order
    update adds `rate` * G to the parameters, the second-order one H^-1 G, where H is the Hessian of the loss summed
    over the rows that stay, with their part of the l2 term. H is never formed: conjugate gradients solve for it, each
    iteration with one pass over the rows that stay.

    For a quadratic loss at its minimum, the second order is a training without the rows, up to rounding. For others it
    is a step of Newton's method towards an optimum. Nothing is promised of either: the paper's certificate needs a
    strictly convex loss, its exact minimum and noise in the training, none of which a trainer gives. In a deep network
    the curvature is negative in some directions: the solution stops there, and the report says so; `damping` helps.
    Needs the forgotten rows, for the second order also those that stay, and layers that can be differentiated twice.
    Rows are removed, features or labels not replaced.

    Args:
        order: "first" or "second".
        rate: Of the first order, for the sum of the gradients.
        l2: The factor of half the squared norm of the parameters in the training objective, in addition to the mean of
            the loss (torch's `weight_decay` with SGD).
        damping: Is added to the curvature of the mean loss.
        steps: Number of updates; each uses its share of G, at the parameters after the previous one.
        batch_size: Rows a pass takes at a time; the result is the same up to rounding.
        iterations: Of conjugate gradients, at most.
        tolerance: The residual, as a share of that at the start, at which they end.
        last_tensors: Number of parameter tensors to change, counted from the last; None for all.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    name = "influence"

    order: Order = "second"
    rate: float = 1e-4
    l2: float = 0.0
    damping: float = 0.0
    steps: int = 1
    batch_size: int = 256
    iterations: int = 100
    tolerance: float = 1e-6
    last_tensors: int | None = None

    def __post_init__(self) -> None:
        check_choice("order", self.order, ("first", "second"))
        check_positive("rate", self.rate)
        check_nonnegative("l2", self.l2)
        check_nonnegative("damping", self.damping)
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_count("iterations", self.iterations)
        check_positive("tolerance", self.tolerance)
        if self.last_tensors is not None:
            check_count("last_tensors", self.last_tensors)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The data that an edit reads in addition to the model."""
        return ("forgotten rows",) if self.order == "first" else ("forgotten rows", "retained rows")

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Add the update.

        Args:
            session: The model and the rows.

        Returns:
            Of the second order, how many iterations were made, the residual, and whether negative curvature was met.

        Raises:
            ConfigurationError: The curvature along the gradient is negative.
        """
        parameters = list(session.parameters.values())
        parameters = parameters if self.last_tensors is None else parameters[-self.last_tensors :]
        report: dict[str, Any] = {}
        for _ in range(self.steps):
            gradient = self._pass(session, session.forget, parameters, None)
            if self.order == "first":
                update = self.rate / self.steps * gradient
            else:
                solution = solve(
                    lambda vector: (
                        self._pass(session, session.retain, parameters, vector)
                        + self.damping * len(session.retain) * vector
                    ),
                    gradient / self.steps,
                    self.iterations,
                    self.tolerance,
                )
                if solution.negative and solution.iterations == 0:
                    raise ConfigurationError(
                        "The curvature of the loss along the forgotten rows' gradient is negative, so a second-order "
                        "step does not exist. Set `damping`, use fewer `last_tensors`, or set order='first'."
                    )
                update = solution.value
                report = solution.describe()
            with torch.no_grad():
                for parameter, part in zip(parameters, _split(update, parameters), strict=True):
                    parameter.add_(part.to(parameter.dtype))
        return report

    def _pass(
        self, session: EditSession, rows: EditRows, parameters: list[torch.nn.Parameter], vector: Tensor | None
    ) -> Tensor:
        """Return the gradient of the objective summed over rows; with a vector, its product with the Hessian."""
        own = torch.cat([parameter.detach().flatten() for parameter in parameters]).double()
        total = self.l2 * len(rows) * (own if vector is None else vector)
        for batch, numbers in zip(rows.batches(self.batch_size), cut(range(len(rows)), self.batch_size), strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
                loss = session.loss(batch)
            gradients = torch.autograd.grad(
                loss, parameters, create_graph=vector is not None, allow_unused=True, materialize_grads=True
            )
            if vector is not None:
                parts = zip(gradients, _split(vector, parameters), strict=True)
                product = sum((gradient * part.to(gradient.dtype)).sum() for gradient, part in parts)
                gradients = _derivatives(product, parameters)
            total = total + len(numbers) * _flat(gradients)
        return total


@dataclass(frozen=True)
class Solution:
    """The result of solving a system.

    Attributes:
        value: The solution.
        iterations: Number of iterations.
        residual: The norm of the residual, relative to the initial one.
        negative: Whether a direction of negative curvature ended it.
    """

    value: Tensor
    iterations: int
    residual: float
    negative: bool

    def describe(self) -> dict[str, Any]:
        """Return all but the solution, JSON-ready."""
        return {"iterations": self.iterations, "residual": self.residual, "negative_curvature": self.negative}


@torch.no_grad()
def solve(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, tolerance: float) -> Solution:
    """Solve a symmetric system by conjugate gradients; stop at a direction of negative curvature.

    Args:
        product: Multiplies a vector by the matrix.
        right: The right-hand side.
        iterations: The largest number of iterations.
        tolerance: The residual at which to end, as a share of that at the start.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0]))
        >>> solve(matrix.mv, torch.tensor([1.0, 1.0]), iterations=5, tolerance=1e-6).value
        tensor([1.0000, 0.5000])
    """
    value, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), float(residual.dot(residual))
    start, done, negative = square, 0, False
    while done < iterations and square > tolerance**2 * start:
        with torch.enable_grad():
            curved = product(direction)
        curvature = float(direction.dot(curved))
        if curvature <= 0:
            negative = True
            break
        length = square / curvature
        value += length * direction
        residual -= length * curved
        before, square = square, float(residual.dot(residual))
        direction = residual + square / before * direction
        done += 1
    return Solution(value, done, (square / start) ** 0.5 if start > 0 else 0.0, negative)


def _derivatives(product: Any, parameters: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    if not product.requires_grad:  # a loss that is linear in them
        return tuple(torch.zeros_like(parameter) for parameter in parameters)
    return torch.autograd.grad(product, parameters, allow_unused=True, materialize_grads=True)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def _split(vector: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    parts = vector.split([parameter.numel() for parameter in parameters])
    return [part.reshape(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
