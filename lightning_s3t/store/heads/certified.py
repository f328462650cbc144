"""A certified linear head: regularised logistic regression on a store's rows, published with secret noise.

Why the certificate holds. The loss is strongly convex: for n rows and the penalty l2, with the constant mu = l2 * n. So
the distance of any point from the only minimum is at most the norm of the gradient there, divided by mu. That norm is
measured on all remaining rows. A head is published only if the distance is at most half of a fixed bound; so two points
that were reached in different ways, by steps after a request and by a first fit without the person, are at most that
bound apart. With Gaussian noise of the standard deviation that belongs to the bound, what is published after the
request is (epsilon, delta)-indistinguishable from what that first fit publishes. The noise is drawn after the steps, so
this also holds given all that was published before.

A request takes the Newton step of Guo et al. (arXiv 1911.03030, section 3), on all remaining rows, from the head that
was published before. They add noise to the loss instead (theorem 3), so that the residual of the step depends on the
noise; we have no proof that covers this. Noise on the result is what Neel et al. (arXiv 2007.02923, "publishing
function") and Sekhari et al. (arXiv 2103.03279) use.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_s3t.core.floor import CLIP, CertifiedPart, FloorPart, Task
from lightning_s3t.store.heads.feature_sums import FeatureRows

_CHUNK = 8192  # rows
_MOST_STEPS = 100
_SHORTEST = 2.0**-20  # share of a Newton step
_ROUNDING = 2.0**-52


@dataclass(frozen=True)
class LinearHead:
    """A linear head on normalised features.

    Attributes:
        weight: `[outputs, width]`.
        bias: `[outputs]`.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, theta: Tensor) -> LinearHead:
        """Return the head of published parameters.

        Args:
            theta: `[outputs, width + 1]`, in the scale of the regression.
        """
        width = theta.shape[1] - 1
        return cls((theta[:, :-1] / math.sqrt(width)).float().contiguous(), theta[:, -1].float().contiguous())


@dataclass(frozen=True)
class Solution:
    """Parameters near the minimum, without noise.

    Attributes:
        theta: `[outputs, width + 1]`, float64; the last column is the bias.
        distance: Their distance from the minimum is at most this.
        steps: Number of Newton steps that led to them.
    """

    theta: Tensor
    distance: float
    steps: int


class LogisticLoss:
    """The loss of a logistic regression for each output, one against the rest, with an l2 penalty on weights and bias.

    Args:
        rows: The rows.
        part: The settings of their features.
        task: The kind of their targets: not "regression".
        l2: The penalty per row.

    Attributes:
        convexity: The constant of strong convexity, l2 times the number of rows.

    Example:
        >>> part = FloorPart(layer="", width=1, outputs=1, bits=8, target_step=1.0)
        >>> rows = FeatureRows(torch.tensor([[127], [-127]]).to(torch.int8), torch.tensor([[1], [0]]).int())
        >>> LogisticLoss(rows, part, "binary", l2=0.5).gradient(torch.zeros(1, 2, dtype=torch.float64)).tolist()
        [[-4.0, 0.0]]
    """

    def __init__(self, rows: FeatureRows, part: FloorPart, task: Task, l2: float) -> None:
        self._rows = rows
        self._task = task
        self._outputs = part.outputs
        self._scale = CLIP / part.limit / math.sqrt(part.width)
        self.convexity = l2 * len(rows)
        norms = sum(float(x.norm(dim=1).sum()) for x, _ in self._chunks())
        # of the sums in a gradient: no term is larger than its row
        self._rounding = _ROUNDING * (len(rows) + part.width) * (math.sqrt(part.outputs) * norms + self.convexity)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient.

        Args:
            theta: `[outputs, width + 1]`.
        """
        found = self.convexity * theta
        for x, y in self._chunks():
            found += ((x @ theta.T).sigmoid() - y).T @ x
        return found

    def newton_step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Return the Newton step: minus the inverse Hessian times the gradient, for each output.

        Args:
            theta: `[outputs, width + 1]`.
            gradient: The gradient there.
        """
        steps = []
        for output in range(self._outputs):
            hessian = torch.eye(theta.shape[1], dtype=theta.dtype) * self.convexity
            for x, _ in self._chunks():
                share = (x @ theta[output]).sigmoid()
                hessian += (x * (share * (1 - share))[:, None]).T @ x
            steps.append(-torch.cholesky_solve(gradient[output, :, None], torch.linalg.cholesky(hessian))[:, 0])
        return torch.stack(steps)

    def distance(self, theta: Tensor, gradient: Tensor) -> float:
        """Return a bound on the distance from the minimum, rounding errors included.

        Args:
            theta: `[outputs, width + 1]`.
            gradient: The gradient there.
        """
        rounding = self._rounding * (1 + float(theta.norm()))
        return (float(gradient.norm()) + rounding) / self.convexity

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._rows), _CHUNK):
            features = self._rows.features[start : start + _CHUNK].double() * self._scale
            targets = self._rows.targets[start : start + _CHUNK]
            if self._task == "multiclass":
                targets = torch.nn.functional.one_hot(targets.long(), self._outputs)
            yield torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1), targets.double()


def solve(
    rows: FeatureRows, part: FloorPart, task: Task, certified: CertifiedPart, start: Tensor | None = None
) -> Solution | None:
    """Return parameters that are near enough to the minimum for the certificate; None if rounding errors prevent it.

    It takes one Newton step, and more only if the first did not lead near enough. Where the full step does not lower
    the gradient's norm, it takes a part of it.

    Args:
        rows: The rows; at least one.
        part: The settings of their features.
        task: The kind of their targets.
        certified: The settings of the head.
        start: Where to start; None for zeros.
    """
    loss, enough = LogisticLoss(rows, part, task, certified.l2), largest_distance(certified)
    shape = (part.outputs, part.width + 1)
    theta = start if start is not None and start.shape == shape else torch.zeros(shape, dtype=torch.float64)
    gradient = loss.gradient(theta)
    for steps in range(1, _MOST_STEPS + 1):
        try:
            step, share = loss.newton_step(theta, gradient), 1.0
        except torch.linalg.LinAlgError:  # the penalty is lost in rounding errors; a request must not fail for it
            return None
        after = loss.gradient(theta + step)
        while float(after.norm()) > (1 - share / 4) * float(gradient.norm()) and share > _SHORTEST:
            share /= 2
            after = loss.gradient(theta + share * step)
        if share > _SHORTEST:
            theta, gradient = theta + share * step, after
        distance = loss.distance(theta, gradient)
        if distance <= enough:
            return Solution(theta, distance, steps)
        if share <= _SHORTEST:
            return None
    return None


def publish(solution: Solution, certified: CertifiedPart) -> Tensor:
    """Return parameters with fresh noise: what may serve.

    Args:
        solution: The parameters.
        certified: The settings of the head.
    """
    return solution.theta + certified.noise * secret_noise(solution.theta.shape)


def secret_noise(shape: tuple[int, ...]) -> Tensor:
    """Return numbers of a standard normal distribution, from the system's source of secrets.

    No seed leads to them: whoever knew one could subtract the noise.

    Args:
        shape: Their shape.
    """
    from scipy.special import ndtri

    bits = np.frombuffer(secrets.token_bytes(8 * math.prod(shape)), dtype=np.uint64)
    return torch.from_numpy(ndtri(((bits >> 11) + 0.5) * 2.0**-53)).reshape(shape)


def largest_distance(certified: CertifiedPart) -> float:
    """Return how far from the minimum parameters may be before the noise: half of what the noise hides.

    Args:
        certified: The settings of the head.
    """
    return certified.noise / noise_ratio(certified.epsilon, certified.delta) / 2


@functools.cache
def noise_ratio(epsilon: float, delta: float) -> float:
    """Return the standard deviation of Gaussian noise that hides a distance of one (Balle and Wang, arXiv 1805.06530).

    It is the smallest for which their theorem 8 holds, rounded up.

    Args:
        epsilon: Of the certificate.
        delta: Likewise.

    Example:
        >>> round(noise_ratio(1.0, 1e-5), 2)  # the classical bound is 4.84
        3.73
    """
    from scipy.special import log_ndtr, ndtr

    def missed(ratio: float) -> float:
        high = float(ndtr(0.5 / ratio - epsilon * ratio))
        low = math.exp(min(0.0, epsilon + float(log_ndtr(-0.5 / ratio - epsilon * ratio))))
        return high * (1 + 1e-12) - low  # never less than it is, for all rounding errors

    low, high = 0.0, 1.0
    while missed(high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) > delta else (low, middle)
    return high
