"""Distances between the answers of two models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.validation import check_logits


def jensen_shannon_of_logits(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Returns each row's Jensen-Shannon divergence in nats, of shape `(N,)`."""
    check_logits("logits", logits)
    check_logits("other_logits", other_logits)
    if logits.shape != other_logits.shape:
        raise ConfigurationError(
            f"Expected both tensors of logits to have the same shape but got {tuple(logits.shape)} and "
            f"{tuple(other_logits.shape)}"
        )
    kind = torch.promote_types(torch.promote_types(logits.dtype, other_logits.dtype), torch.float32)
    one, two = logits.to(kind).log_softmax(dim=1), other_logits.to(kind).log_softmax(dim=1)
    mean = torch.logaddexp(one, two) - math.log(2)
    parts = [torch.where(p == -torch.inf, 0.0, p.exp() * (p - mean)).sum(dim=1) for p in (one, two)]
    return ((parts[0] + parts[1]) / 2).clamp(0, math.log(2))


def retrain_divergence(logits: Tensor, retrained_logits: Tensor) -> Tensor:
    r"""Compute the mean Jensen-Shannon divergence of a model's answers to a retrained model's, in nats.

    .. math::
        JS(p, q) = \tfrac{1}{2} KL(p \,\|\, m) + \tfrac{1}{2} KL(q \,\|\, m), \quad m = \tfrac{1}{2}(p + q)

    Published code often swaps the arguments of `kl_div` and so averages :math:`KL(m \| p)` and :math:`KL(m \| q)`,
    which has no bound.

    Source: Lin, IEEE Transactions on Information Theory 37(1), 1991; to a retrained model: Golatkar et al. (1911.04933)
    and Chundawat et al. (2205.08096).

    Args:
        logits: Of shape `(N, C)`.
        retrained_logits: Of the same rows by a model that never had the forgotten ones, shape `(N, C)`.

    Returns:
        A scalar from 0 to log 2.

    Example:
        >>> from torch import tensor
        >>> retrain_divergence(tensor([[0.9, 0.1]]).log(), tensor([[0.5, 0.5]]).log())
        tensor(0.1017)
    """
    return jensen_shannon_of_logits(logits, retrained_logits).mean()


def zero_retrain_forgetting(logits: Tensor, random_logits: Tensor) -> Tensor:
    r"""Compute ZRF, the zero retrain forgetting metric: the closeness of outputs on forgotten rows to a random model's.

    .. math:: ZRF = 1 - \frac{1}{|F|} \sum_{x \in F} \frac{JS(u(x), t(x))}{\log 2}

    Source: Chundawat et al., *Can Bad Teaching Induce Forgetting?* (2205.08096); the division by log 2, which the bound
    0 to 1 needs, is ours.

    Args:
        logits: Of the unlearned model, for forgotten rows, shape `(N, C)`.
        random_logits: Of a model with freshly drawn weights, for the same rows.

    Returns:
        A scalar from 0 to 1.

    Example:
        >>> from torch import tensor
        >>> zero_retrain_forgetting(tensor([[0.9, 0.1]]).log(), tensor([[0.5, 0.5]]).log())
        tensor(0.8532)
    """
    return 1 - jensen_shannon_of_logits(logits, random_logits).mean() / math.log(2)
