"""The demo's digits: public rows, private rows that belong to people, and rows to measure on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_s3t.zoo.datamodules import DigitsData, OwnedRows

PUBLIC_TRAIN_ROWS = 300
"""How many of the train rows are public, together with all rows for validation."""


@dataclass(frozen=True)
class Digits:
    """The three parts.

    Attributes:
        public: Rows that anyone may train on; each is its own owner.
        private: Rows that belong to people.
        test: Images and labels that accuracy is measured on.
    """

    public: OwnedRows
    private: OwnedRows
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, people: int, seed: int) -> Digits:
        """Load the digits that come with scikit-learn.

        Args:
            people: Number of people who own the private rows.
            seed: For the split, and for who owns what.
        """
        data = DigitsData(people, seed)
        train, val, test = (data.load(part) for part in ("train", "val", "test"))
        return cls(
            public=OwnedRows([*train.rows[:PUBLIC_TRAIN_ROWS], *val.rows]),
            private=OwnedRows(train.rows[PUBLIC_TRAIN_ROWS:], train.owners[PUBLIC_TRAIN_ROWS:]),
            test=tuple(default_collate(list(test.rows))),
        )


@torch.no_grad()
def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Return the share of images that a model classifies correctly.

    Args:
        model: A module that gives logits.
        test: Images and labels.
    """
    images, labels = test
    training = model.training
    model.eval()
    share = float((model(images).argmax(-1) == labels).float().mean())
    model.train(training)  # a trainer takes a module in the mode that it finds it in
    return share
