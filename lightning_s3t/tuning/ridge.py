"""A linear head in closed form: ridge regression, whose choices all follow from sums that can forget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_s3t.core.floor import CLIP, Task
from lightning_s3t.store.heads.feature_sums import FeatureSums

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is tried for the penalty, as multiples of the features' mean square times the number of rows."""

_SHARPNESS = 3.0  # scale of a softmax over scores whose error has a variance of one


@dataclass(frozen=True)
class RidgeHead:
    """A linear head with outputs in the scale that the task's loss expects from a network.

    Attributes:
        weight: `[outputs, features]`.
        bias: `[outputs]`.
        penalty: The chosen element of `PENALTIES`.
        error: The mean squared error of left-out rows by generalised cross-validation, `[outputs]`.
        rows: Number of rows that it was solved from.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    error: Tensor
    rows: int

    def __call__(self, features: Tensor) -> Tensor:
        """Answer.

        Args:
            features: A network's own, `[..., features]`.

        Returns:
            Logits; of a regression, its numbers. `[..., outputs]`.
        """
        return answer_linearly(features, self.weight, self.bias)


def answer_linearly(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the answers of a closed-form head, in the features' own type.

    Args:
        features: A network's own, `[..., features]`.
        weight: `[outputs, features]`.
        bias: `[outputs]`.
    """
    wide = normalise(features)
    return torch.nn.functional.linear(wide, weight.to(wide.dtype), bias.to(wide.dtype)).to(features.dtype)


def normalise(features: Tensor) -> Tensor:
    """Return features divided by each row's own mean absolute value, clipped at four times that value.

    The result for a row depends only on that row: constants computed over rows would include all of them.

    Args:
        features: `[..., features]`.

    Returns:
        Of the same shape, between -4 and 4, in float32 or wider.

    Example:
        >>> normalise(torch.tensor([[1.0, -1.0, 4.0], [0.0, 0.0, 0.0]]))
        tensor([[ 0.5000, -0.5000,  2.0000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    scale = wide.abs().mean(-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
    return (wide / scale).clamp(-CLIP, CLIP)


def round_features(features: Tensor, limit: int) -> Tensor:
    """Return features as integers.

    Args:
        features: `[rows, features]`.
        limit: The largest absolute integer, which represents four times a row's mean absolute feature.

    Example:
        >>> round_features(torch.tensor([[1.0, -1.0, 4.0]]), limit=127)
        tensor([[ 16, -16,  64]], dtype=torch.int8)
    """
    return (normalise(features) * (limit / CLIP)).round().to(torch.int8)


def solve_head(sums: FeatureSums) -> RidgeHead:
    """Return the head that sums over rows give.

    The penalty is the one of `PENALTIES` with the least generalised cross-validation error (Golub, Heath and Wahba,
    Technometrics 1979, equation 1.4), whose sum over the outputs is compared; the constant is not penalised. Logits of
    a class are its score divided by three times that error: scores are estimates of probabilities, and the error is
    their variance. Only the sums are used, so subtracted rows do not influence any of these choices.

    Args:
        sums: The sums.

    Example:
        >>> from lightning_s3t.core.floor import FloorPart
        >>> from lightning_s3t.store.heads.feature_sums import FeatureRows
        >>> sums = FeatureSums(FloorPart(layer="", width=2, outputs=2, bits=8, target_step=1.0), "multiclass")
        >>> features = torch.tensor([[9.0, 1.0], [8.0, 2.0], [1.0, 7.0], [2.0, 9.0]])
        >>> sums.add(FeatureRows(round_features(features, limit=127), torch.tensor([0, 0, 1, 1]).int()))
        >>> solve_head(sums)(features).argmax(-1)
        tensor([0, 0, 1, 1])
    """
    scale = sums.part.limit / CLIP
    width, rows = sums.part.width, max(sums.rows, 1)
    gram, cross = sums.gram / scale, sums.cross.double() / scale
    gram[:width, :width] /= scale
    gram[width, width] *= scale
    cross[width] *= scale
    squares = sums.squares.double()
    unit = float(gram.diagonal()[:width].sum()) / width or 1.0
    fits = [_fit(gram, cross, squares, penalty * unit, rows) for penalty in PENALTIES]
    best = min(range(len(fits)), key=lambda index: (float(fits[index][1].sum()), -index))
    solution, error = fits[best]
    weight, bias = solution[:width].T, solution[width]
    weight, bias = _in_the_scale_of_the_loss(weight, bias, error, sums.task, sums.part.target_step)
    return RidgeHead(weight.float().contiguous(), bias.float(), PENALTIES[best], error, sums.rows)


def _fit(gram: Tensor, cross: Tensor, squares: Tensor, penalty: float, rows: int) -> tuple[Tensor, Tensor]:
    """Return the solution for a penalty, and its generalised cross-validation error by output."""
    penalties = torch.full((len(gram),), penalty, dtype=gram.dtype)
    penalties[-1] = 1e-9  # the constant's own: only so that a solution exists without any rows
    factor = torch.linalg.cholesky(gram + torch.diag(penalties))
    solution = torch.cholesky_solve(cross, factor)
    residual = squares - 2 * (solution * cross).sum(0) + (solution * (gram @ solution)).sum(0)
    # trace of (G + P)^-1 G = d - trace of (G + P)^-1 P, from the inverse of the factor
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(gram), dtype=gram.dtype), upper=False)
    freedom = len(gram) - float((inverse.square().sum(0) * penalties).sum())
    left = max(1.0 - freedom / rows, 1e-6)
    return solution, residual.clamp_min(0.0) / rows / left**2


def _in_the_scale_of_the_loss(
    weight: Tensor, bias: Tensor, error: Tensor, task: Task, step: float
) -> tuple[Tensor, Tensor]:
    if task == "regression":
        return weight * step, bias * step
    if task == "multiclass":
        temperature = (_SHARPNESS * error.mean()).clamp_min(1e-6)
        return weight / temperature, bias / temperature
    temperatures = (_SHARPNESS * error).clamp_min(1e-6)
    return weight / temperatures[:, None], (bias - 0.5) / temperatures
