"""Fits with everything in use that could break the guarantees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor

from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.people import People, fit, tensors_of

PERSON = "user-3"


def callbacks(folder: Path) -> list[Any]:
    return [
        EarlyStopping("val_loss", patience=1),
        ModelCheckpoint(dirpath=folder / "checkpoints", monitor="val_loss", save_last=True),
        WeightAveraging(),
    ]


def fit_with_everything(folder: Path, people: People, **arguments: Any) -> Path:
    store = folder / "store"
    trainer = {"enable_checkpointing": True, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    fit(store, people, *callbacks(folder), workers=1, epochs=2, trainer=trainer, **arguments)
    return store


def forget(store: Path, *people: str) -> Any:
    with Store.open(store) as opened:
        return opened.forget(people)


@dataclass(frozen=True)
class Forgotten:
    """A store that was trained on everyone and has forgotten the person."""

    folder: Path
    arguments: dict[str, Any]
    served: dict[UnitId, dict[str, Tensor]]  # what served on

    @classmethod
    def make(cls, folder: Path, **arguments: Any) -> Forgotten:
        store = fit_with_everything(folder, People.make(), **arguments)
        forget(store, PERSON)
        return cls(folder, arguments, tensors_of(store))
