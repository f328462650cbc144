"""A trial before training: whether a network's outputs can be combined."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.aggregation import aggregate_outputs


class AnswerTrial:
    """Records a network's first call, and later combines the outputs of two models for it.

    Args:
        network: The network.

    Example:
        >>> class Detector(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).argmax(-1)
        >>> network = Detector(4, 9)
        >>> trial, _ = AnswerTrial(network), network(torch.randn(20, 4))
        >>> print(trial.find_problem(network.parameters()))
        The models answer with different tensors of torch.int64, which have no mean. ...
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._hook = network.register_forward_pre_hook(self._note, with_kwargs=True)

    @torch.no_grad()
    def find_problem(self, trained: Iterable[nn.Parameter]) -> str | None:
        """Return why outputs cannot be combined; None if they can, or if the trial is not possible.

        Args:
            trained: The parameters in which models differ. They are as before afterwards.
        """
        self._hook.remove()
        if self._call is None:
            return None
        args, kwargs = self._call
        before = [(parameter, parameter.detach().clone()) for parameter in trained]
        try:
            answers = [self._network(*args, **kwargs)]
            for parameter, _ in before:
                parameter.add_(torch.randn_like(parameter))
            answers.append(self._network(*args, **kwargs))
            aggregate_outputs(answers, "mean_logits")
        except EnsembleError as error:
            return str(error)
        except Exception:
            # whatever the error is: the network was not made for such a call
            return None
        finally:
            for parameter, value in before:
                parameter.copy_(value)
        return None

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._call is None:
            self._call = args, kwargs
