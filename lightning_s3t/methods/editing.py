"""Editing: methods that change a trained model instead of training it again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_s3t.errors import UnsupportedError
from lightning_s3t.methods.method import Need, WholeModelMethod
from lightning_s3t.tuning.guard import named_tensors
from lightning_s3t.tuning.randomness import derive_seed

Weights = Mapping[str, Tensor]
"""Tensors of a module, by name."""


class EditRows:
    """The rows of an edit: the rows to be forgotten, or the retained ones.

    Args:
        count: Number of rows.
        read: Takes batches of row indices, from 0 to `count` - 1, and yields each batch on the model's device, collated
            as in the script's own dataloader.
        seed: Seed of shuffled orders.

    Example:
        >>> rows = EditRows(5, lambda batches: map(torch.tensor, batches))
        >>> [batch.tolist() for batch in rows.batches(2)]
        [[0, 1], [2, 3], [4]]
        >>> sorted(torch.cat(list(rows.shuffled(2))).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int, read: Callable[[Iterable[Sequence[int]]], Iterator[Any]], seed: int = 0) -> None:
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)
        self.read = read

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Any]:
        """Read all rows, in the data set's order.

        Args:
            size: Rows per batch; the last may have fewer.
        """
        return self.read(cut(range(self._count), size))

    def shuffled(self, size: int) -> Iterator[Any]:
        """Read all rows, in another order at every call.

        Args:
            size: Rows per batch; the last may have fewer.
        """
        return self.read(cut(self.shuffle(), size))

    def shuffle(self) -> list[int]:
        """Return the row numbers in another order at every call."""
        return torch.randperm(self._count, generator=self._generator).tolist()


class Answer(NamedTuple):
    """The model's output for a batch.

    Attributes:
        loss: The training loss, as `training_step` returns it.
        logits: The network's answer, shape `[..., classes]`.
    """

    loss: Tensor
    logits: Tensor


@dataclass(frozen=True)
class EditSession:
    """The resources of a method for editing a model.

    The model is on its device, with its trained weights, and in evaluation mode: the methods here are made for edits
    without dropout that leave running statistics unchanged.

    Attributes:
        module: The user's module.
        network: The part of it whose call returns the prediction.
        parameters: The parameters that may change, by name; everything else must stay unchanged.
        forget: The rows to be forgotten; at least one.
        retain: The rows that stay; at least one.
        loss: Gives the training loss of a batch, as `training_step` returns it.
        untrained: Gives the tensors that training has changed as they were before it: new adapters or the pretrained
            layers, and the head as the first fit found it.
        seed: Seed of all random draws.
        records: The records of the method's recorder, by name; records that the edit leaves here are stored with the
            edited model.
        places: The indices of the rows to be forgotten among all training rows of the model.
    """

    module: nn.Module
    network: nn.Module
    parameters: Mapping[str, nn.Parameter]
    forget: EditRows
    retain: EditRows
    loss: Callable[[Any], Tensor]
    untrained: Callable[[], Weights]
    seed: int = 0
    records: dict[str, Tensor] = field(default_factory=dict)
    places: Sequence[int] = ()

    @property
    def trained_rows(self) -> int:
        """Number of rows that the model was trained on."""
        return len(self.forget) + len(self.retain)

    def answer(self, batch: Any) -> Answer:
        """Return the loss of a batch and the logits that it comes from.

        Args:
            batch: The batch.

        Raises:
            UnsupportedError: `training_step` does not call the network exactly once, or its output does not contain
                logits.
        """
        answers: list[Any] = []
        hook = self.network.register_forward_hook(lambda _, __, output: answers.append(output))
        try:
            loss = self.loss(batch)
        finally:
            hook.remove()
        if len(answers) != 1:
            raise UnsupportedError(
                "The method needs the network's output for a batch, but training_step called "
                f"{type(self.network).__name__} {len(answers)} times. Call it once per batch, as self(...) or "
                "self.network(...) rather than .forward(), or use a method that needs only the loss."
            )
        return Answer(loss, logits_of(answers[0]))

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the current parameters that may change."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Have the module hold other weights within the block, without gradients: to ask a teacher.

        Args:
            weights: Tensors by name; for all others the module keeps its own.
        """
        tensors = named_tensors(self.module)
        own = {name: tensors[name].data for name in weights}
        for name, weight in weights.items():
            tensors[name].data = weight.to(own[name].device)
        try:
            with torch.no_grad():
                yield
        finally:
            for name, tensor in own.items():
                tensors[name].data = tensor

    def generator(self, label: str) -> torch.Generator:
        """Return a generator on the CPU that is the same for every edit with this seed.

        Args:
            label: The purpose of the draws.
        """
        return torch.Generator().manual_seed(derive_seed(self.seed, label))


class TrainingRecorder(Protocol):
    """Keeps records of a training, which are in the model's snapshot and erased with it."""

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Begin, just before the first step.

        Args:
            parameters: The parameters that are trained, by name.
        """

    def step(self, rows: Sequence[int]) -> None:
        """Record an optimizer step after it was taken.

        Args:
            rows: The indices of its batches' rows among the training rows.
        """

    def records(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the records, by name.

        Args:
            weights: The parameters as they will serve.
        """


class EditingMethod(WholeModelMethod):
    """A method that edits its single model on request, with the rows to be forgotten and the retained rows.

    The rows must be in the data until the fit that carries out the request. If these rows no longer exist, or rows have
    been added since, that fit trains the model from scratch instead.
    """

    guarantee = "empirical"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The data that an edit reads in addition to the model."""
        return ("forgotten rows", "retained rows")

    def recorder(self) -> TrainingRecorder | None:
        """Return a recorder for future edits; None if no records are needed."""
        return None

    @abstractmethod
    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Change the model's parameters in place.

        Args:
            session: The model and the rows.

        Returns:
            A description of the edit, JSON-ready, for the model's provenance.
        """


def cut(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut an order of rows into batches.

    Args:
        order: Row numbers.
        size: Rows per batch; the last may have fewer.

    Example:
        >>> list(cut([3, 1, 2], 2))
        [[3, 1], [2]]
    """
    return (order[start : start + size] for start in range(0, len(order), size))


def logits_of(answer: Any) -> Tensor:
    """Return the logits in a network's answer: a tensor, `.logits`, the entry "logits", or the first of a tuple.

    Args:
        answer: The network's output.

    Raises:
        UnsupportedError: It is none of these.

    Example:
        >>> logits_of({"logits": torch.zeros(1, 2)})
        tensor([[0., 0.]])
    """
    found = getattr(answer, "logits", None)
    if found is None and isinstance(answer, Mapping):
        found = answer.get("logits")
    elif found is None and isinstance(answer, (tuple, list)) and answer:
        found = answer[0]
    elif found is None:
        found = answer
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 2:
        raise UnsupportedError(
            f"The method needs logits of shape [..., classes], but the network returned {type(answer).__name__}. "
            "Return the logits or an object with `.logits`, or use a method that needs only the loss."
        )
    return found
