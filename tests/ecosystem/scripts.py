"""What scripts of several groups are made of: samples, small networks, a plain module around one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from tests.ecosystem.cases import Samples, Script, Variant, loader


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(rows: int = 60, length: int = 8) -> list[tuple[Tensor, int]]:
    drawn = torch.randint(1, 90, (rows, length), generator=generator())
    return [(row, int(row[0]) % 3) for row in drawn]


def pictures(rows: int = 60, size: int = 32, channels: int = 3) -> list[tuple[Tensor, int]]:
    drawn = torch.randn(rows, channels, size, size, generator=generator())
    return [(row, int(row.mean() > 0)) for row in drawn]


def vectors(rows: int = 60, width: int = 8) -> list[tuple[Tensor, int]]:
    drawn = torch.randn(rows, width, generator=generator())
    return [(row, int(row.sum() > 0)) for row in drawn]


def mlp(width: int = 8, classes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))


class Lit(pl.LightningModule):
    """A classifier around a network."""

    def __init__(self, net: nn.Module, rate: float = 1e-2) -> None:
        super().__init__()
        self.net = net
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(x)
        return getattr(answer, "logits", answer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], self.rate)


class LanguageModel(Lit):
    """Predicts the next token; the network is one of transformers."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(input_ids=batch[0], labels=batch[0]).loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.net(input_ids=batch[0], labels=batch[0]).loss)


def script(variant: Variant, module: pl.LightningModule, samples: list[Any], batch_size: int = 8, **s3t: Any) -> Script:
    """A module, samples that each belong to somebody, and a test on the samples of all."""
    test = loader(Samples(samples, [""] * len(samples)), batch_size, shuffle=False)
    return Script(module, loader(variant.samples(samples), batch_size), test, s3t=s3t)
