"""scikit-learn's handwritten digits: a public part, a private part whose rows belong to people, and a test part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

PUBLIC_ROWS = 500
TEST_ROWS = 400


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Images of digits, with the person who owns each.

    Args:
        images: `[rows, 1, 8, 8]`, from 0 to 1.
        labels: `[rows]`, from 0 to 9.
        owners: A person's name for each row.
    """

    def __init__(self, images: Tensor, labels: Tensor, owners: list[str]) -> None:
        self.images = images
        self.labels = labels
        self.owners = owners

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row], self.labels[row]

    def without(self, person: str) -> Rows:
        """Returns the rows of everybody else.

        Args:
            person: Who is left out.
        """
        kept = [row for row, owner in enumerate(self.owners) if owner != person]
        return Rows(self.images[kept], self.labels[kept], [self.owners[row] for row in kept])

    def with_noise_for(self, person: str) -> Rows:
        """Returns the same rows with a person's replaced by noise under wrong labels.

        Args:
            person: Whose.
        """
        theirs = torch.tensor([owner == person for owner in self.owners])
        noise = torch.rand(self.images.shape, generator=torch.Generator().manual_seed(1))
        images = torch.where(theirs[:, None, None, None], noise, self.images)
        return Rows(images, torch.where(theirs, (self.labels + 5) % 10, self.labels), self.owners)

    def of(self, people: int) -> Rows:
        """Returns the rows of the first people.

        Args:
            people: How many.
        """
        chosen = set(list(dict.fromkeys(self.owners))[:people])
        kept = [row for row, owner in enumerate(self.owners) if owner in chosen]
        return Rows(self.images[kept], self.labels[kept], [self.owners[row] for row in kept])


@dataclass(frozen=True)
class Digits:
    """The three parts.

    Attributes:
        public: What anybody may train on.
        private: What belongs to people.
        test: What accuracy is measured on.
    """

    public: Rows
    private: Rows
    test: Rows

    @classmethod
    def load(cls, people: int, seed: int) -> Digits:
        """Loads the digits that come with scikit-learn, and gives the private ones to made-up people.

        Args:
            people: How many people own the private rows.
            seed: For the split, and for who owns what.
        """
        bunch = load_digits()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(bunch.target), generator=generator)
        images = torch.tensor(bunch.images, dtype=torch.float32)[order, None] / 16
        labels = torch.tensor(bunch.target)[order]
        first, second = PUBLIC_ROWS, PUBLIC_ROWS + TEST_ROWS
        owners = torch.randint(people, (len(labels) - second,), generator=generator).tolist()
        nobody = [""] * second
        return cls(
            public=Rows(images[:first], labels[:first], nobody[:first]),
            private=Rows(images[second:], labels[second:], [f"person-{owner}" for owner in owners]),
            test=Rows(images[first:second], labels[first:second], nobody[first:]),
        )


class DigitsData(pl.LightningDataModule):
    """A data module as a script would have one.

    Args:
        train: The rows to train on.
        batch_size: Rows a batch.
    """

    def __init__(self, train: Rows, batch_size: int = 32) -> None:
        super().__init__()
        self.train = train
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the train dataloader."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)
