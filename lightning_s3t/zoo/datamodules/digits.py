"""scikit-learn's handwritten digits, which need no download, owned by made-up people."""

from __future__ import annotations

import torch

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.datamodules.rows import OwnedData, OwnedRows, Part
from lightning_s3t.zoo.extras import import_extra

PARTS: dict[Part, slice] = {"test": slice(0, 400), "val": slice(400, 600), "train": slice(600, None)}


class DigitsData(OwnedData):
    """Images of digits, 8 by 8 in one channel from 0 to 1: 1197 to train on, 200 to validate and 400 to test.

    Args:
        people: Number of people who own the rows; each row goes to one of them at random.
        seed: For the split, and for who owns what.
        batch_size: Rows per batch.
        workers: Processes that read rows.

    Raises:
        ConfigurationError: An argument is out of range, or scikit-learn is missing.

    Example:
        >>> images, labels = next(iter(DigitsData(batch_size=4).train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    def __init__(self, people: int = 200, seed: int = 0, batch_size: int = 32, workers: int = 0) -> None:
        super().__init__(batch_size, workers)
        if people < 1:
            raise ConfigurationError(f"Expected argument `people` to be 1 or more but got {people}.")
        self.people = people
        self.seed = seed

    def load(self, part: Part) -> OwnedRows:
        """Load a part.

        Args:
            part: The part.
        """
        bunch = import_extra("sklearn.datasets", "The digits", "demo").load_digits()
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(bunch.target), generator=generator)
        owners = torch.randint(self.people, (len(order),), generator=generator).tolist()
        chosen = order[PARTS[part]]
        images = torch.tensor(bunch.images, dtype=torch.float32)[chosen, None] / 16
        labels = torch.tensor(bunch.target, dtype=torch.long)[chosen]
        rows = list(zip(images, labels, strict=True))
        return OwnedRows(rows, [f"person-{owner}" for owner in owners[PARTS[part]]])
