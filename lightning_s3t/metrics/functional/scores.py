"""Scores of a model's confidence in a row, for attacks. The higher a score, the more likely the row was trained on.

All take logits of shape `(N, C)`. Logarithms of probabilities are logits too: pass `probabilities.log()`. Scores are
computed such that they stay apart where the probability itself would round to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_s3t.metrics.functional.validation import check_logits


def loss_score(logits: Tensor, target: Tensor) -> Tensor:
    r"""The negative cross-entropy of each row, :math:`\log p_y`.

    Source: Yeom et al., *Privacy Risk in Machine Learning* (1709.01604), adversary 2: a row whose loss is small is
    called a member. Song and Mittal's confidence of the true class (2003.10595) puts rows in the same order.

    Args:
        logits: Of shape `(N, C)`.
        target: Classes of shape `(N,)`.

    Returns:
        Scores of shape `(N,)`.

    Example:
        >>> from torch import tensor
        >>> loss_score(tensor([[0.9, 0.1], [0.5, 0.5]]).log(), tensor([0, 1]))
        tensor([-0.1054, -0.6931])
    """
    return F.logsigmoid(logit_score(logits, target))


def confidence_score(logits: Tensor) -> Tensor:
    r"""The logarithm of each row's largest probability, :math:`\log \max_c p_c`. It needs no labels.

    Source: Salem et al., *ML-Leaks* (1806.01246), the third adversary.

    Args:
        logits: Of shape `(N, C)`.

    Returns:
        Scores of shape `(N,)`.

    Example:
        >>> from torch import tensor
        >>> confidence_score(tensor([[0.9, 0.1], [0.5, 0.5]]).log()).exp()
        tensor([0.9000, 0.5000])
    """
    check_logits("logits", logits)
    return _log_probabilities(logits)[0].max(dim=1).values


def entropy_score(logits: Tensor) -> Tensor:
    r"""The negative entropy of each row's probabilities in nats, :math:`\sum_c p_c \log p_c`. It needs no labels.

    Source: Song and Mittal, *Systematic Evaluation of Privacy Risks of Machine Learning Models* (2003.10595), the
    entropy-based attack; Salem et al. (1806.01246).

    Args:
        logits: Of shape `(N, C)`.

    Returns:
        Scores of shape `(N,)`.

    Example:
        >>> from torch import tensor
        >>> entropy_score(tensor([[1.0, 0.0], [0.5, 0.5]]).log())
        tensor([ 0.0000, -0.6931])
    """
    check_logits("logits", logits)
    log_p, _ = _log_probabilities(logits)
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(dim=1)


def modified_entropy_score(logits: Tensor, target: Tensor) -> Tensor:
    r"""The negative modified entropy of each row.

    Unlike entropy, it distinguishes a confidently wrong row from a confidently right one.

    .. math::
        Mentr(p, y) = -(1 - p_y) \log p_y - \sum_{c \neq y} p_c \log (1 - p_c)

    Source: Song and Mittal (2003.10595), the definition of modified prediction entropy. Published code often has `log
    p` for `log(1 - p)`, and edits the column of every row's label in all rows.

    Args:
        logits: Of shape `(N, C)`.
        target: Classes of shape `(N,)`.

    Returns:
        Scores of shape `(N,)`; minus infinity where a class has probability 1 and is not the target.

    Example:
        >>> from torch import tensor
        >>> modified_entropy_score(tensor([[0.999, 0.001], [0.999, 0.001]]).log(), tensor([0, 1]))
        tensor([-2.0010e-06, -1.3802e+01])
    """
    check_logits("logits", logits, target)
    log_p, log_not_p = _log_probabilities(logits)
    of_others = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_not_p)
    # (1 - p) log p, and p log (1 - p) for all classes but the target
    of_target = torch.where(log_not_p == -torch.inf, 0.0, log_not_p.exp() * log_p)
    is_target = F.one_hot(target.long(), logits.shape[1]).bool()
    return torch.where(is_target, of_target, of_others).sum(dim=1)


def logit_score(logits: Tensor, target: Tensor) -> Tensor:
    r"""The logit of the true class's probability, :math:`\phi = \log p_y - \log(1 - p_y)`, which is nearly normal.

    Computed as :math:`z_y - \log \sum_{c \neq y} e^{z_c}`. LiRA, KLoM (where it is called the margin) and the
    unlearning challenge compare it.

    Source: Carlini et al., *Membership Inference Attacks From First Principles* (2112.03570), where it is called logit
    scaling.

    Args:
        logits: Of shape `(N, C)`.
        target: Classes of shape `(N,)`.

    Returns:
        Scores of shape `(N,)`.

    Example:
        >>> from torch import tensor
        >>> logit_score(tensor([[0.9, 0.1], [0.5, 0.5]]).log(), tensor([0, 1]))
        tensor([2.1972, 0.0000])
    """
    check_logits("logits", logits, target)
    logits = _floats(logits)
    is_target = F.one_hot(target.long(), logits.shape[1]).bool()
    others = logits.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return logits[is_target] - others


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log p and log(1 - p) of every class, both without cancellation."""
    logits = _floats(logits)
    log_p = logits.log_softmax(dim=1)
    # of the classes below the top one, no probability is above 1/2
    log_not_p = torch.log1p(-log_p.exp())
    top = logits.argmax(dim=1, keepdim=True)
    rest = logits.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    margin = logits.gather(1, top) - rest
    return log_p.scatter(1, top, F.logsigmoid(margin)), log_not_p.scatter(1, top, F.logsigmoid(-margin))


def _floats(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
