"""Fit the store of a hospital on its patients: python fit.py hospital-7 runs/hospital-7."""

from __future__ import annotations

import sys

import lightning.pytorch as pl

from lightning_s3t import Unlearning
from lightning_s3t.methods import ClosedForm
from lightning_s3t.zoo.datamodules import DigitsData
from lightning_s3t.zoo.datamodules.rows import OwnedRows, Part
from lightning_s3t.zoo.models import ImageClassifier

HOSPITALS = ["hospital-3", "hospital-7"]


def make_model() -> pl.LightningModule:
    """Return the network that all hospitals and the server have."""
    pl.seed_everything(0, verbose=False)  # made-up weights; yours would load theirs from a file
    return ImageClassifier(
        "vit_tiny_patch16_224",
        num_classes=10,
        pretrained=False,
        model_arguments={
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 2.0,
        },
    )


class Patients(DigitsData):
    """The rows of some hospitals' patients, of whom each is at one hospital."""

    def __init__(self, *hospitals: str) -> None:
        super().__init__()
        self.hospitals = hospitals

    def load(self, part: Part) -> OwnedRows:
        """Load a part."""
        everyone = super().load(part)
        chosen = [row for row, owner in enumerate(everyone.owners) if hospital_of(owner) in self.hospitals]
        return OwnedRows([everyone.rows[row] for row in chosen], [everyone.owners[row] for row in chosen])


def hospital_of(patient: str) -> str:
    """Return where a patient is: "person-4" is at the first hospital, "person-5" at the second."""
    return HOSPITALS[int(patient.removeprefix("person-")) % len(HOSPITALS)]


def fit(store: str, *hospitals: str) -> None:
    """Fit a store on the rows of some hospitals' patients."""
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[Unlearning(ClosedForm(), store, subjects="owners")],
    )
    trainer.fit(make_model(), datamodule=Patients(*hospitals))


if __name__ == "__main__":
    fit(sys.argv[2], sys.argv[1])
