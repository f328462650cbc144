"""Argument checks of the metrics, with messages in the style of torchmetrics."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError


def check_confidence_level(confidence_level: float) -> None:
    """Raise `ConfigurationError` unless the level is between 0 and 1."""
    if not (isinstance(confidence_level, float) and 0 < confidence_level < 1):
        raise ConfigurationError(
            f"Expected argument `confidence_level` to be a float in range (0, 1) but got {confidence_level}"
        )


def check_positive_integer(name: str, value: int) -> None:
    """Raise `ConfigurationError` unless the argument is a positive integer."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        raise ConfigurationError(f"Expected argument `{name}` to be a positive integer but got {value}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` unless the argument is one of the allowed values."""
    if value not in allowed:
        raise ConfigurationError(f"Expected argument `{name}` to be one of {allowed} but got {value}")


def check_floats(name: str, values: Tensor, ndim: int) -> None:
    """Raise `ConfigurationError` unless the tensor holds floats without NaN and has the given number of dimensions."""
    if not (isinstance(values, Tensor) and values.is_floating_point()):
        found = values.dtype if isinstance(values, Tensor) else type(values)
        raise ConfigurationError(f"Expected argument `{name}` to be a tensor of floats but got {found}")
    if values.ndim != ndim:
        raise ConfigurationError(
            f"Expected argument `{name}` to have {ndim} dimension(s) but got shape {tuple(values.shape)}"
        )
    # an attack on a model that has diverged means nothing, and a comparison with NaN is always false
    if missing := int(values.isnan().sum()):
        raise ConfigurationError(f"Expected argument `{name}` to hold no NaN but got {missing} of {values.numel()}")


def check_finite(**scores: Tensor) -> None:
    """Raise `ConfigurationError` if normal distributions cannot be fitted to the scores, because some are infinite."""
    for name, values in scores.items():
        if infinite := int(values.isinf().sum()):
            raise ConfigurationError(
                f"Expected argument `{name}` to hold finite scores but got {infinite} infinite of {values.numel()}. "
                "Compute them from logits instead of probabilities that are rounded to 0 or 1, or clamp them"
            )


def check_logits(name: str, logits: Tensor, target: Tensor | None = None) -> None:
    """Raise `ConfigurationError` unless these are logits of shape `(N, C)` and matching targets."""
    check_floats(name, logits, ndim=2)
    if logits.shape[1] < 2:
        raise ConfigurationError(
            f"Expected argument `{name}` to have a column for each of at least two classes but got shape "
            f"{tuple(logits.shape)}. For a single logit of a binary classifier, pass `torch.stack([-z / 2, z / 2], 1)`"
        )
    if (logits == torch.inf).any():
        raise ConfigurationError(f"Expected argument `{name}` to hold no positive infinity")
    if target is None:
        return
    if target.shape != logits.shape[:1] or target.is_floating_point():
        raise ConfigurationError(
            f"Expected argument `target` to hold {len(logits)} integers, one for each row of `{name}`, but got shape "
            f"{tuple(target.shape)} and type {target.dtype}"
        )
    if len(target) and not (int(target.min()) >= 0 and int(target.max()) < logits.shape[1]):
        raise ConfigurationError(
            f"Expected argument `target` to hold classes from 0 to {logits.shape[1] - 1} but got "
            f"{int(target.min())} to {int(target.max())}"
        )


def check_same_rows(**tensors: Tensor) -> None:
    """Raise `ConfigurationError` unless all tensors have the same number of rows."""
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        found = ", ".join(f"`{name}` has {len(tensor)}" for name, tensor in tensors.items())
        raise ConfigurationError(f"Expected arguments to have the same number of rows but {found}")


def check_models(least: int, **scores: Tensor) -> None:
    """Raise `ConfigurationError` unless these are scores of the same rows by enough models, of shape `(N, models)`."""
    for name, values in scores.items():
        check_floats(name, values, ndim=2)
        if values.shape[1] < least:
            raise ConfigurationError(
                f"Expected argument `{name}` to have scores of at least {least} models for each row but got shape "
                f"{tuple(values.shape)}"
            )
    check_same_rows(**scores)


def membership(is_member: Tensor | bool, rows: Tensor) -> Tensor:
    """Return which rows are members, as booleans; a single one holds for all rows."""
    if isinstance(is_member, bool):
        return torch.full((len(rows),), is_member, dtype=torch.bool, device=rows.device)
    if not isinstance(is_member, Tensor) or is_member.shape != rows.shape[:1]:
        found = tuple(is_member.shape) if isinstance(is_member, Tensor) else is_member
        raise ConfigurationError(
            f"Expected argument `is_member` to be a bool or to have a value for each of {len(rows)} rows "
            f"but got {found}"
        )
    if is_member.dtype != torch.bool and not ((is_member == 0) | (is_member == 1)).all():
        raise ConfigurationError(f"Expected argument `is_member` to hold only 0 and 1 but got {is_member.unique()}")
    return is_member.bool()
