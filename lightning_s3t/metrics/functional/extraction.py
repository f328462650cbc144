"""Extraction: the training texts that a language model repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.text import rouge_score

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.metrics.functional.intervals import clopper_pearson
from lightning_s3t.metrics.functional.membership import named_interval
from lightning_s3t.metrics.functional.validation import check_confidence_level


def extraction_rate(
    generated: Tensor, target: Tensor, ignore_index: int | None = None, confidence_level: float = 0.95
) -> dict[str, Tensor]:
    """Compute the share of texts that a model repeats token for token when given their beginning.

    Source: Carlini et al., *Quantifying Memorization Across Neural Language Models* (2202.07646), definition 3.1: with
    greedy decoding, a text is extractable with `k` tokens of context if the model continues these `k` tokens with the
    text's own.

    Args:
        generated: Token ids of shape `(N, T)`.
        target: The true continuations' ids, same shape.
        ignore_index: Positions where `target` has this id (padding) do not count.
        confidence_level: Share of intervals (Clopper and Pearson's, over texts) that hold the true rate.

    Returns:
        `extraction_rate`, with `_lower` and `_upper`.

    Example:
        >>> from torch import tensor
        >>> extraction_rate(tensor([[5, 6, 7], [5, 6, 1]]), tensor([[5, 6, -100], [5, 6, 7]]), ignore_index=-100)[
        ...     "extraction_rate"
        ... ]
        tensor(0.5000)
    """
    check_confidence_level(confidence_level)
    exact = exact_matches(generated, target, ignore_index)
    return rate_of_texts(int(exact.sum()), len(exact), confidence_level, generated.device)


def exact_matches(generated: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    """Returns which texts are repeated token for token, of shape `(N,)`."""
    if generated.shape != target.shape or generated.ndim != 2:
        raise ConfigurationError(
            f"Expected arguments `generated` and `target` to have the same shape `(N, T)` but got "
            f"{tuple(generated.shape)} and {tuple(target.shape)}"
        )
    if generated.is_floating_point() or target.is_floating_point():
        raise ConfigurationError(
            f"Expected arguments `generated` and `target` to hold token ids but got {generated.dtype} and "
            f"{target.dtype}"
        )
    counts = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    if not counts.any(dim=1).all():
        # an empty continuation would be repeated by any model
        raise ConfigurationError("Expected argument `target` to have at least one token in each row but a row has none")
    return ((generated == target) | ~counts).all(dim=1)


def rate_of_texts(exact: int, texts: int, confidence_level: float, device: torch.device) -> dict[str, Tensor]:
    """The rate and its interval."""
    value = exact / texts if texts else math.nan
    found = named_interval("extraction_rate", value, *clopper_pearson(exact, texts, confidence_level))
    return {name: tensor.to(device) for name, tensor in found.items()}


def extraction_rouge(generated: Sequence[str], target: Sequence[str]) -> dict[str, Tensor]:
    """Compute how much of each text a model repeats: ROUGE-L, as torchmetrics has it.

    Source: Lin, *ROUGE* (W04-1013); its recall as a measure of unlearning: Maini et al., *TOFU* (2401.06121).

    Args:
        generated: The model's texts.
        target: The training texts, in the same order.

    Returns:
        `recall` and `fmeasure` of the longest common subsequence of words, and `exact_match`; means over texts.

    Example:
        >>> extraction_rouge(["the cat sat"], ["the cat sat on the mat"])
        {'recall': tensor(0.5000), 'fmeasure': tensor(0.6667), 'exact_match': tensor(0.)}
    """
    return {name: values.mean() for name, values in rouge_of_texts(generated, target).items()}


def rouge_of_texts(generated: Sequence[str], target: Sequence[str]) -> dict[str, Tensor]:
    """Returns ROUGE-L and exact matches of each text, of shape `(N,)`."""
    if isinstance(generated, str) or isinstance(target, str) or len(generated) != len(target):
        raise ConfigurationError(
            "Expected arguments `generated` and `target` to be sequences of the same number of strings but got "
            f"{_number(generated)} and {_number(target)}"
        )
    scores = [rouge_score(written, true, rouge_keys="rougeL") for written, true in zip(generated, target, strict=True)]
    return {
        "recall": torch.tensor([float(score["rougeL_recall"]) for score in scores]),
        "fmeasure": torch.tensor([float(score["rougeL_fmeasure"]) for score in scores]),
        "exact_match": torch.tensor([float(one == two) for one, two in zip(generated, target, strict=True)]),
    }


def _number(texts: Sequence[str]) -> str:
    return "a single string" if isinstance(texts, str) else f"{len(texts)} texts"
