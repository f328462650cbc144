"""Editing: methods that change a trained model instead of training it again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_s3t.methods.method import WholeModelMethod

Batches = Callable[[int], Iterator[Any]]
"""Gives the batches of a set of rows, in the data set's order, of at most a number of rows each."""


@dataclass(frozen=True)
class EditSession:
    """What a method has to edit a model with. The model is in evaluation mode, on its device, with its trained weights.

    Attributes:
        module: The user's module.
        parameters: The parameters that may be changed, by name; everything else has to stay as it is.
        forget: The batches of the rows that are to be forgotten.
        retain: The batches of the rows that stay.
        forget_rows: How many rows are to be forgotten.
        retain_rows: How many rows stay.
        loss: Gives the training loss of a batch, as `training_step` returns it.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    forget: Batches
    retain: Batches
    forget_rows: int
    retain_rows: int
    loss: Callable[[Any], Tensor]


class EditingMethod(WholeModelMethod):
    """A method that edits its one model when somebody asks, with the rows that are to be forgotten and those that stay.

    The rows have to be in the data until the fit that carries the request out. Where they are gone, or where rows have
    been added meanwhile, that fit trains the model from scratch instead.
    """

    guarantee = "empirical"

    @abstractmethod
    def edit(self, session: EditSession) -> Mapping[str, Any]:
        """Change the model's parameters in place.

        Args:
            session: The model and the rows.

        Returns:
            What was done, JSON-ready, for the model's provenance.
        """
