"""Sessions to edit small networks in, as the engine makes them, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.methods import EditRows, EditSession
from lightning_s3t.tuning.randomness import derive_seed

CLASSES, FEATURES = 4, 6
Rows = Any  # a tensor, or a tuple of tensors


def rows_of(data: Rows, seed: int = 0) -> EditRows:
    """The rows of tensors, one along their first dimension."""

    def read(batches: Iterable[Sequence[int]]) -> Iterator[Rows]:
        return (_pick(data, list(batch)) for batch in batches)

    return EditRows(len(data[0] if isinstance(data, tuple) else data), read, seed)


def make_session(
    net: nn.Module, forget: Rows, retain: Rows, loss: Callable[[Any], Tensor] | None = None, seed: int = 0
) -> EditSession:
    """A session in which all parameters of a network may be changed; with cross entropy unless told otherwise."""
    untrained = {name: tensor.detach().clone() for name, tensor in Mlp(seed=99).state_dict().items()}
    return EditSession(
        net,
        net,
        dict(net.named_parameters()),
        rows_of(forget, derive_seed(seed, "edit", "forget")),
        rows_of(retain, derive_seed(seed, "edit", "retain")),
        loss or (lambda batch: nn.functional.cross_entropy(net(batch[0]), batch[1])),
        lambda: untrained,
        seed,
    )


class Mlp(nn.Sequential):
    """A network of two layers."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def make_rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features and labels that have to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, FEATURES, generator=generator)
    return features, features[:, :CLASSES].argmax(1)


def trained(rows: tuple[Tensor, Tensor], steps: int = 200) -> Mlp:
    """A network that has learnt rows."""
    net = Mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(rows[0]), rows[1]).backward()
        optimizer.step()
    return net


def both(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two sets of rows as one."""
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def state(net: nn.Module) -> dict[str, Tensor]:
    """Copy of a network's tensors."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether tensors are equal to the last bit."""
    return all(first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first | second)


def _pick(data: Rows, rows: list[int]) -> Rows:
    return tuple(tensor[rows] for tensor in data) if isinstance(data, tuple) else data[rows]
