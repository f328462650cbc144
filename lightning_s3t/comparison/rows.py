"""The rows of a comparison: the order of requests, and the measured rows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_s3t.comparison.asking import rows_loader
from lightning_s3t.engine.subjects import Subjects
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.plan import Partition, canonical_subject


@dataclass(frozen=True)
class ComparedRows:
    """The subjects who ask, and the rows that models are measured on.

    Attributes:
        requests: The subjects that ask, in this order.
        asked_at: For each forgotten row, the number of the request that it belongs to, from 1.
        forgotten: The rows of those who ask.
        retained: Rows that stay to the end, some of them where there are many.
        test: Test rows.
        subjects: Number of subjects.
        rows: Number of their rows.
        digest: Of who owns each row and who asks.
    """

    requests: tuple[str, ...]
    asked_at: Tensor
    forgotten: DataLoader[Any]
    retained: DataLoader[Any]
    test: DataLoader[Any]
    subjects: int
    rows: int
    digest: str

    @classmethod
    def of(
        cls,
        datamodule: pl.LightningDataModule,
        subjects: Subjects,
        requests: int | Sequence[Any],
        seed: int,
        most_retained: int,
    ) -> ComparedRows:
        """Look at the data, once it is set up.

        Args:
            datamodule: The data module.
            subjects: The owner of each row.
            requests: Number of subjects who ask, or their ids in the order in which they ask.
            seed: Seed of the random draws.
            most_retained: The largest number of retained rows to measure.

        Raises:
            ConfigurationError: There are too few subjects, or `requests` has an unknown one.
        """
        data = TrainingData(datamodule.train_dataloader(), subjects, Partition(1, 1))
        everybody = sorted(data.bands)
        draw = random.Random(seed)
        if isinstance(requests, int):
            _check_count(requests, len(everybody))
            asking = tuple(draw.sample(everybody, requests))
        else:
            asking = tuple(canonical_subject(subject) for subject in requests)
            unknown = [subject for subject in asking if subject not in data.bands]
            if unknown or len(set(asking)) != len(asking):
                what = f"{len(unknown)} of them are not in the data" if unknown else "a subject is in it twice"
                raise ConfigurationError(f"Expected argument `requests` to name subjects of the data, but {what}.")
            _check_count(len(asking), len(everybody))
        number = {subject: at for at, subject in enumerate(asking, start=1)}
        forgotten = data.rows_of(number.keys())
        draw.shuffle(forgotten)  # so that a batch of them is not one person's
        retained = data.rows_of(data.bands.keys() - number.keys())
        if not retained or not forgotten:
            raise DataError(
                "No row is left to compare on. Expected rows of subjects who ask to be forgotten, and of subjects "
                "who stay."
            )
        retained = draw.sample(retained, min(most_retained, len(retained)))
        text = repr((data.subjects, asking, most_retained)).encode()
        return cls(
            asking,
            torch.tensor([number[data.subjects[row]] for row in forgotten]),
            rows_loader(data.loader, data.dataset, forgotten),
            rows_loader(data.loader, data.dataset, retained),
            _test_loader(datamodule),
            len(everybody),
            len(data.subjects),
            hashlib.sha256(text).hexdigest(),
        )


def _check_count(requests: int, subjects: int) -> None:
    if isinstance(requests, bool) or not 1 <= requests < subjects:
        raise ConfigurationError(
            f"Expected argument `requests` to be from 1 to {subjects - 1} but got {requests}: the data has {subjects} "
            "subjects; each asks once, and at least one has to stay."
        )


def _test_loader(datamodule: pl.LightningDataModule) -> DataLoader[Any]:
    """Return the test rows in order, or those for validation where there are none."""
    kind = type(datamodule)
    if kind.test_dataloader is not pl.LightningDataModule.test_dataloader or "test_dataloader" in vars(datamodule):
        datamodule.setup("test")
        found: Any = datamodule.test_dataloader()
    else:
        datamodule.setup("validate")
        found = datamodule.val_dataloader()
    loaders = list(found) if isinstance(found, (list, tuple)) else [found]
    if len(loaders) != 1 or not isinstance(loaders[0], DataLoader):
        raise DataError(
            f"{kind.__name__} gives {len(loaders)} test dataloaders. Expected one DataLoader, with rows that no model "
            "was trained on and that resemble those of the subjects."
        )
    (loader,) = loaders
    return rows_loader(loader, loader.dataset, range(len(loader.dataset)))
