"""Putting the answers of several shards together into one."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.caches import is_cache

Rule = Literal["mean_logits", "mean_probabilities", "vote"]
RULES: tuple[str, ...] = get_args(Rule)
# with "single" only one survivor answers, and nothing is combined
Aggregate = Literal["mean_logits", "mean_probabilities", "vote", "single"]
AGGREGATES: tuple[str, ...] = get_args(Aggregate)
# beyond it, a probability is within one in ten million of 0 or 1, where outputs are clipped
_LARGEST_LOGIT = 16.0
_ALONE = "or use only the output of the best survivor: aggregate='single'."


def aggregate_logits(logits: Sequence[Tensor], how: Rule, votes: Sequence[int] | None = None) -> Tensor:
    """Put the logits of several models together.

    With every rule the output is in the scale of logits, so that argmax, softmax and cross entropy keep working: for
    "mean_probabilities" its softmax is the mean of the softmaxes, for "vote" the shares of the votes (a class without a
    vote has a share of one in ten million, for the logarithm's sake). A single column is read as the logit of a binary
    answer; a warning says so where it is too large for one.

    Args:
        logits: One tensor a model, of equal shape `[..., classes]`.
        how: The rule.
        votes: Number of votes of each model; None for one each.

    Returns:
        A tensor of the same shape.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> aggregate_logits([a, b], "mean_logits")
        tensor([[1., 2.]])
        >>> aggregate_logits([a, b, b], "vote").softmax(-1)
        tensor([[0.3333, 0.6667]])
        >>> aggregate_logits([a, b], "mean_logits", votes=[3, 1])
        tensor([[1.5000, 1.0000]])
    """
    stacked = torch.stack(list(logits))
    weights = _weights(votes, stacked)
    if how == "mean_logits":
        return stacked.mean(0) if weights is None else (stacked * weights.to(stacked.dtype)).sum(0)
    work = stacked.float()
    if work.shape[-1] == 1:
        if not torch.compiler.is_compiling() and bool((work.abs() > _LARGEST_LOGIT).any()):
            warnings.warn(
                f"The models return a single column, which {how!r} reads as the logit of a binary classifier, but its "
                "values are as large as those of a regression. For a regression use aggregate='mean_logits', the "
                "mean of the outputs.",
                stacklevel=2,
            )
        shares = work.sigmoid() if how == "mean_probabilities" else (work > 0).float()
        mean = shares.mean(0) if weights is None else (shares * weights).sum(0)
        mean = mean.clamp(1e-7, 1 - 1e-7)
        return torch.logit(mean).to(stacked.dtype)
    if how == "mean_probabilities":
        log_shares = work.log_softmax(-1)
        if weights is not None:
            return (log_shares + weights.log()).logsumexp(0).to(stacked.dtype)
        return (log_shares.logsumexp(0) - torch.tensor(float(len(work))).log()).to(stacked.dtype)
    chosen = torch.nn.functional.one_hot(work.argmax(-1), work.shape[-1]).float()
    shares = chosen.mean(0) if weights is None else (chosen * weights).sum(0)
    return shares.clamp_min(1e-7).log().to(stacked.dtype)


def _weights(votes: Sequence[int] | None, stacked: Tensor) -> Tensor | None:
    """Return shares of the votes, in a shape that goes with stacked answers."""
    if votes is None:
        return None
    weights = torch.tensor(votes, dtype=torch.float32, device=stacked.device) / sum(votes)
    return weights.view(-1, *[1] * (stacked.dim() - 1))


def aggregate_outputs(outputs: Sequence[Any], how: Rule, votes: Sequence[int] | None = None) -> Any:
    """Put the answers of several models together, whatever form a network gives them.

    A tensor is taken as logits. An output with `.logits` (a Hugging Face ModelOutput) keeps its type: its logits are
    combined, its loss is the mean of the losses, and fields of a single model (hidden states) are left out. Tuples,
    lists and dicts of tensors are combined element by element, only by the mean. Whole numbers that are equal in all
    answers are passed on, as is a cache that is the same object in all.

    Args:
        outputs: One answer a model.
        how: The rule for logits.
        votes: Number of votes of each model; None for one each.

    Raises:
        EnsembleError: There is no rule for this kind of output.

    Example:
        >>> aggregate_outputs([torch.tensor([1.0]), torch.tensor([3.0])], "mean_logits")
        tensor([2.])
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if _have_no_mean(first) and all(torch.equal(first, output) for output in outputs):
            return first
        _check_tensors(outputs)
        return aggregate_logits(outputs, how, votes)
    if isinstance(getattr(first, "logits", None), Tensor):
        fields: dict[str, Any] = {"logits": aggregate_logits([output.logits for output in outputs], how, votes)}
        if isinstance(getattr(first, "loss", None), Tensor):
            fields["loss"] = aggregate_logits([output.loss for output in outputs], "mean_logits", votes)
        if isinstance(first, Mapping):
            fields |= {name: part for name, part in first.items() if is_cache(part) and _is_shared(part, name, outputs)}
        return _checked(type(first)(**fields), fields)
    if is_cache(first) and all(output is first for output in outputs):
        return first
    if how == "mean_logits":
        if isinstance(first, Mapping):
            parts_by_key = {key: aggregate_outputs([output[key] for output in outputs], how, votes) for key in first}
            # a ModelOutput is read by attributes
            return type(first)(**parts_by_key) if dataclasses.is_dataclass(first) else parts_by_key
        if isinstance(first, (tuple, list)):
            parts = [aggregate_outputs(list(column), how, votes) for column in zip(*outputs, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
        if first is None or (isinstance(first, (int, float, str, bool)) and all(o == first for o in outputs)):
            return first
    raise EnsembleError(
        f"The network returned {type(first).__name__}, which {how!r} cannot combine. Expected a tensor, an object "
        f"with `.logits`, or (for 'mean_logits') tuples and dicts of tensors: return one from its forward(), {_ALONE}"
    )


def _is_shared(part: Any, name: str, outputs: Sequence[Any]) -> bool:
    return all(output.get(name) is part for output in outputs)


def _checked(answer: Any, fields: Mapping[str, Any]) -> Any:
    """Return an output if its class kept every field unchanged."""
    lost = [name for name, value in fields.items() if getattr(answer, name, None) is not value]
    if lost:
        raise EnsembleError(
            f"{type(answer).__name__} does not keep the {', '.join(lost)} that it was created with. Expected a class "
            "whose fields are its arguments: return a tensor or a dict of tensors from the network's forward()."
        )
    return answer


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise EnsembleError(
            f"The models returned tensors of different shapes: {shapes}. Expected one shape: return logits from the "
            f"network's forward(), {_ALONE}"
        )
    if _have_no_mean(tensors[0]):
        raise EnsembleError(
            f"The models returned different tensors of {tensors[0].dtype}, which have no mean. Expected logits: "
            f"return them from the network's forward(), {_ALONE}"
        )


def _have_no_mean(tensor: Tensor) -> bool:
    return not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
