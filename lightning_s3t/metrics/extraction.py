"""Extraction: the training texts that a language model repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.metrics.functional.extraction import exact_matches, rate_of_texts, rouge_of_texts
from lightning_s3t.metrics.functional.validation import check_confidence_level
from lightning_s3t.metrics.metric import UnlearningMetric


class ExtractionRate(UnlearningMetric):
    r"""Compute the share of texts that a language model repeats token for token when given their beginning.

    .. math:: rate = \frac{1}{N} \sum_i [\hat{s}_i = s_i]

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``generated`` (:class:`~torch.Tensor`): token ids of shape ``(N, T)``, from greedy decoding
    - ``target`` (:class:`~torch.Tensor`): the true continuations' ids, same shape

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``extraction`` (``dict``): ``extraction_rate``, with ``_lower`` and ``_upper``, the ends of Clopper and Pearson's
      interval over texts

    **Direction.** Lower is better, down to the rate of a retrained model, which is above 0 for texts that can be
    guessed.

    **What it cannot show.** That a text cannot be extracted: another prompt, sampling, or a few steps of training may
    recover it, and a text that is repeated except for one token counts as forgotten.

    Source: Carlini et al., *Quantifying Memorization Across Neural Language Models* (2202.07646), definition 3.1.

    Args:
        ignore_index: Positions where ``target`` has this id (padding) do not count.
        confidence_level: Share of intervals that hold the true rate.
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> from lightning_s3t.metrics import ExtractionRate
        >>> metric = ExtractionRate(ignore_index=-100)
        >>> metric.update(tensor([[5, 6, 7], [5, 6, 1]]), tensor([[5, 6, -100], [5, 6, 7]]))
        >>> metric.compute()["extraction_rate"]
        tensor(0.5000)
    """

    higher_is_better: bool = False
    exact: Tensor
    total: Tensor

    def __init__(self, ignore_index: int | None = None, confidence_level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_confidence_level(confidence_level)
        self.ignore_index = ignore_index
        self.confidence_level = confidence_level
        self.add_state("exact", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, generated: Tensor, target: Tensor) -> None:
        """Update state with generated and true continuations."""
        self.exact += exact_matches(generated, target, self.ignore_index).sum()
        self.total += len(target)

    def compute(self) -> dict[str, Tensor]:
        """Compute the rate with its interval."""
        return rate_of_texts(int(self.exact), int(self.total), self.confidence_level, self.exact.device)


class ExtractionRouge(UnlearningMetric):
    r"""Compute how much of each text a language model repeats: ROUGE-L, as torchmetrics has it.

    .. math:: recall = \frac{|LCS(\hat{s}, s)|}{|s|}

    with LCS the longest common subsequence of words.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``generated`` (a sequence of ``str``): the model's texts
    - ``target`` (a sequence of ``str``): the training texts, in the same order

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``extraction`` (``dict``): ``recall``, ``fmeasure`` and ``exact_match``, means over texts

    **Direction.** Lower is better, down to the value of a retrained model: texts of one kind share words.

    **What it cannot show.** A model that has forgotten how to write and one that has forgotten the text get the same
    score; so do a paraphrased fact and a forgotten one. The mean hides single texts that are repeated whole.

    Source: Lin, *ROUGE* (W04-1013); its recall as a measure of unlearning: Maini et al., *TOFU* (2401.06121).

    Args:
        kwargs: Additional keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> from lightning_s3t.metrics import ExtractionRouge
        >>> metric = ExtractionRouge()
        >>> metric.update(["the cat sat"], ["the cat sat on the mat"])
        >>> metric.compute()
        {'recall': tensor(0.5000), 'fmeasure': tensor(0.6667), 'exact_match': tensor(0.)}
    """

    higher_is_better: bool = False
    recall: Tensor
    fmeasure: Tensor
    exact_match: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("recall", "fmeasure", "exact_match"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, generated: Sequence[str], target: Sequence[str]) -> None:
        """Update state with generated and true texts."""
        for name, values in rouge_of_texts(generated, target).items():
            setattr(self, name, getattr(self, name) + values.to(self.total.device).sum())
        self.total += len(target)

    def compute(self) -> dict[str, Tensor]:
        """Compute the means over texts."""
        return {name: (getattr(self, name) / self.total).float() for name in ("recall", "fmeasure", "exact_match")}
