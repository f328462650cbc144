"""Relearning: how many steps on forgotten rows a model takes until it knows them as before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s3t.comparison.asking import Call
from lightning_s3t.methods.editing import logits_of
from lightning_s3t.metrics.functional import relearn_time


def relearn(
    networks: Sequence[nn.Module], calls: Sequence[Call], goal: float, learning_rate: float, most: int, seed: int
) -> tuple[int, bool]:
    """Train on forgotten rows until a model knows them, with Adam from the start and in evaluation mode.

    An ensemble's networks take each step at the same time, on the same rows; the mean of their logits is its answer.

    Args:
        networks: The models that answer together; they are changed.
        calls: The forgotten rows, a call for each step.
        goal: The accuracy on them that counts as known.
        learning_rate: Adam's.
        most: Steps at most.
        seed: Seed of the order of the calls.

    Returns:
        The number of steps, and whether it got there.
    """
    optimizers = []
    for network in networks:
        network.eval()
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizers.append(torch.optim.Adam(parameters, learning_rate))
    generator = torch.Generator().manual_seed(seed)
    accuracies = [_accuracy(networks, calls)]
    order: list[int] = []
    while accuracies[-1] < goal - 1e-6 and len(accuracies) <= most:
        order = order or torch.randperm(len(calls), generator=generator).tolist()
        call = calls[order.pop()]
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            with torch.enable_grad():
                F.cross_entropy(_logits(network, call), call.labels).backward()
            optimizer.step()
        accuracies.append(_accuracy(networks, calls))
    steps, reached = relearn_time(torch.tensor(accuracies, dtype=torch.float64), goal, margin=0.0)
    return int(steps), bool(reached)


def _logits(network: nn.Module, call: Call) -> Tensor:
    return logits_of(network(*call.args, **call.kwargs))


@torch.no_grad()
def _accuracy(networks: Sequence[nn.Module], calls: Sequence[Call]) -> float:
    correct = total = 0
    for call in calls:
        logits = torch.stack([_logits(network, call) for network in networks]).mean(0)
        correct += int((logits.argmax(-1) == call.labels).sum())
        total += len(call.labels)
    return correct / total
