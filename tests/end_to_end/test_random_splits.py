"""Data that is split at random at every start, as scripts do in `setup()`: what is forgotten stays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, random_split

from lightning_s3t.errors import DataError
from lightning_s3t.store import Store
from tests.people import Classifier, People, make_trainer


class Split(pl.LightningDataModule):
    """Splits again at every `setup`."""

    def __init__(self, people: People) -> None:
        super().__init__()
        self.people = people

    def setup(self, stage: str) -> None:
        self.train, _ = random_split(self.people, [len(self.people) - 20, 20])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, 8, shuffle=True)


class NotesRows(Classifier):
    """Notes the first feature of every row that it is trained on, in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.path.open("a") as file:
            file.write("".join(f"{float(value)}\n" for value in batch[0][:, 0]))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit_split(store: Path, people: People) -> set[str]:
    """Fits, and returns the first features of the rows that were trained on."""
    seen = store.parent / "seen.txt"
    seen.unlink(missing_ok=True)
    module = NotesRows(seen)
    module.validation_step = None  # type: ignore[assignment, method-assign]
    make_trainer(store, epochs=1, subjects="index").fit(module, datamodule=Split(people))
    return set(seen.read_text().split())


def test_a_forgotten_row_is_not_trained_on_after_another_split_at_random(tmp_path: Path) -> None:
    people, store = People.make(), tmp_path / "store"
    torch.manual_seed(0)
    seen = fit_split(store, people)
    row = next(row for row, value in enumerate(people.features[:, 0]) if str(float(value)) in seen)
    with Store.open(store) as opened:
        opened.forget([row])
    with pytest.warns(
        UserWarning, match=r"units are trained again, because the subjects of their slices have changed.*random_split"
    ):
        seen = fit_split(store, people)
    assert len(seen) > 90
    assert str(float(people.features[row, 0])) not in seen


def test_a_split_that_differs_between_two_loads_is_refused(tmp_path: Path) -> None:
    people = People.make()

    class Again(Split):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(random_split(self.people, [100, 20])[0], 8, shuffle=True)

    with pytest.raises(DataError, match=r"gives other ids\..*give random_split a generator with a fixed seed"):
        make_trainer(tmp_path / "store", subjects="index").fit(Classifier(), datamodule=Again(people))
    assert not (tmp_path / "store").exists()
