"""Relearning: how quickly a model relearns forgotten rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.validation import check_floats


def relearn_time(accuracies: Tensor, original_accuracy: float, margin: float = 0.05) -> tuple[Tensor, Tensor]:
    r"""Compute after how many steps of training on the forgotten rows a model knows them as well as before.

    .. math:: RT = \min\{t : a_t(F) \geq (1 - \alpha)\, a_o(F)\}

    Source: Golatkar et al. (1911.04933); with the margin: Chundawat et al., *Zero-Shot Machine Unlearning*
    (2201.05629).

    Args:
        accuracies: On the forgotten rows after 0, 1, 2, ... steps, shape `(T + 1,)`. Start the optimizer afresh, and
            use the same rate and order of rows for models that are compared.
        original_accuracy: On the same rows, of the model before it forgot.
        margin: The share :math:`\alpha` of it that may be missing.

    Returns:
        The number of steps, and whether the model got there. If it did not, the number is `T`: it takes longer.

    Example:
        >>> from torch import tensor
        >>> relearn_time(tensor([0.2, 0.5, 0.97, 0.99]), original_accuracy=1.0)
        (tensor(2.), tensor(True))
        >>> relearn_time(tensor([0.2, 0.5]), original_accuracy=1.0)
        (tensor(1.), tensor(False))
    """
    check_goal(original_accuracy, margin)
    check_floats("accuracies", accuracies, ndim=1)
    if not len(accuracies):
        raise ConfigurationError(
            "Expected argument `accuracies` to hold at least the accuracy before the first step but got none"
        )
    if not (float(accuracies.min()) >= 0 and float(accuracies.max()) <= 1):
        raise ConfigurationError(f"Expected argument `accuracies` to hold values from 0 to 1 but got {accuracies}")
    # rounding must not cost a step: 0.95 in float32 is below 0.95
    arrived = accuracies.double() >= (1 - margin) * original_accuracy - 1e-6
    reached = arrived.any()
    first = arrived.long().argmax()
    last = torch.tensor(len(accuracies) - 1, device=accuracies.device)
    return torch.where(reached, first, last).float(), reached


def check_goal(original_accuracy: float, margin: float) -> None:
    """Raises `ConfigurationError` unless both are shares."""
    for name, value in (("original_accuracy", original_accuracy), ("margin", margin)):
        if not (isinstance(value, float | int) and 0 <= value <= 1):
            raise ConfigurationError(f"Expected argument `{name}` to be a number in range [0, 1] but got {value}")


def anamnesis_index(unlearned_time: Tensor, retrained_time: Tensor) -> Tensor:
    r"""Compute AIN, the anamnesis index: a model's relearn time as a multiple of a retrained model's.

    .. math:: AIN = \frac{RT_u + 0.01}{RT_r + 0.01}

    Source: Chundawat et al., *Zero-Shot Machine Unlearning* (2201.05629). The constant, which keeps the index above 0
    for a model that has not forgotten anything, is the usual one in code.

    Args:
        unlearned_time: Relearn times of the unlearned model, of any shape; the mean is taken.
        retrained_time: Relearn times of retrained models.

    Returns:
        A scalar: 1 is ideal, less is memory that was left, much more is over-forgetting. NaN if retrained models need
        no step, since then nothing can be seen.

    Example:
        >>> from torch import tensor
        >>> anamnesis_index(tensor([2.0, 4.0]), tensor([6.0]))
        tensor(0.5008)
    """
    of_retrained = retrained_time.float().mean()
    index = (unlearned_time.float().mean() + 0.01) / (of_retrained + 0.01)
    return torch.where(of_retrained == 0, torch.nan, index)
