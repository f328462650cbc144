"""The digits as an app for comparing methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from lightning_s3t.zoo.datamodules import OwnedRows
from lightning_s3t.zoo.demo.digits import Digits
from lightning_s3t.zoo.demo.training import QUICK, DemoSettings, make_trainer, train_publicly
from lightning_s3t.zoo.models import ImageClassifier

DIGITS = DemoSettings(people=200, epochs=15)

METHODS: dict[str, Any] = {
    "s3t": {"name": "s3t", "shards": 3, "slices": 4, "budget": 2, "sequences": "cyclic", "epoch_rule": "sisa"},
    "sisa": {"name": "sisa", "shards": 3, "slices": 4},
    "fine_tune": "fine_tune",
    "ssd": {"name": "ssd", "batch_size": 8},
    "scrub": "scrub",
    "salun": "salun",
    "neg_grad_plus": "neg_grad_plus",
    "bad_teacher": "bad_teacher",
}
"""The methods that are compared on the digits, by label."""


class PrivateDigits(pl.LightningDataModule):
    """The demo's private rows to train on, and its test rows.

    Args:
        digits: The digits.
    """

    def __init__(self, digits: Digits) -> None:
        super().__init__()
        self._digits = digits

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled private rows."""
        return DataLoader(self._digits.private, 32, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test rows."""
        return DataLoader(OwnedRows(list(zip(*self._digits.test, strict=True))), 100)


def make_digits_app(
    quick: bool = False,
) -> tuple[pl.Trainer, ImageClassifier, PrivateDigits, dict[str, Any]]:
    """Create the parts of a comparison: a trainer, the pretrained model with a new head, private rows, and methods.

    Args:
        quick: Tiny sizes.
    """
    settings = replace(QUICK, epochs=1) if quick else DIGITS
    digits = Digits.load(settings.people, settings.seed)
    model = train_publicly(digits.public, settings)
    torch.manual_seed(settings.seed)
    model.network.reset_classifier(10)  # a new head, as for a downloaded backbone with a new task
    s3t = S3T(
        "s3t-demo-store",  # the comparison has stores of its own
        settings.shards,
        settings.slices,
        settings.budget,
        subjects="owners",
        adapter=None,
        seed=settings.seed,
        parallel_units=2,
    )
    return make_trainer(settings.epochs, s3t), model, PrivateDigits(digits), METHODS
