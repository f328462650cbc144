"""Methods compared on texts: a transformers model that is called with a mapping and answers with an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_s3t import compare
from tests.people import make_trainer

pytestmark = pytest.mark.nightly

WORDS, LENGTH = 30, 6


class Texts(Dataset[dict[str, Tensor]]):
    """Texts of two topics, each with words of its own, that belong to people."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.topics = torch.randint(2, (count,), generator=draw)
        words = torch.randint(WORDS // 2, (count, LENGTH), generator=draw)
        self.words = words + self.topics[:, None] * (WORDS // 2)
        self.owners = [f"author-{number % 20}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.topics)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[row], "labels": self.topics[row]}


class TextData(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Texts(120, seed=0), 16, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Texts(60, seed=1), 30)


class TextClassifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
        self.network: nn.Module = BertForSequenceClassification(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.network(**batch).loss
        return loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("loss", self.network(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 0.01)


def test_methods_are_compared_on_texts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "untouched", adapter=None, epochs=3)
    found = compare(trainer, TextClassifier(), TextData(), ["s3t", "scrub"], 2, output=tmp_path / "output")
    for one in found.methods:
        assert one.refused is None
        assert [moment.test is not None for moment in one.moments] == [True, True, True]
        assert one.relearn_steps is not None
    first = found["retrain"].after(0)
    assert first is not None
    assert (first.test or 0) > 0.8
