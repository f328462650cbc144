"""Data whose rows belong to people, and modules that learn from it: what the tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_s3t import S3T, Unlearning
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store

CLASSES, FEATURES = 3, 8


class People(Dataset[tuple[Tensor, Tensor]]):
    """Rows of three classes, each owned by somebody."""

    def __init__(self, features: Tensor, labels: Tensor, owners: Sequence[str]) -> None:
        self.features = features
        self.labels = labels
        self.owners = list(owners)

    @classmethod
    def make(cls, people: int = 40, rows: int = 3, seed: int = 0) -> People:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(CLASSES, (people * rows,), generator=generator)
        centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99)) * 2
        features = centres[labels] + torch.randn(len(labels), FEATURES, generator=generator)
        return cls(features, labels, [f"user-{row % people}" for row in range(people * rows)])

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.features[row], self.labels[row]

    def without(self, *people: str) -> People:
        rows = [row for row, owner in enumerate(self.owners) if owner not in people]
        return People(self.features[rows], self.labels[rows], [self.owners[row] for row in rows])

    def replaced(self, *people: str, seed: int = 123) -> People:
        """The same with these people's rows replaced by anything at all."""
        generator = torch.Generator().manual_seed(seed)
        features, labels = self.features.clone(), self.labels.clone()
        for row, owner in enumerate(self.owners):
            if owner in people:
                features[row] = torch.randn(FEATURES, generator=generator) * 50
                labels[row] = torch.randint(CLASSES, (), generator=generator)
        return People(features, labels, self.owners)


class PeopleData(pl.LightningDataModule):
    """A data module over people."""

    def __init__(self, train: People, workers: int = 0, batch_size: int = 8) -> None:
        super().__init__()
        self.train = train
        self.workers = workers
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.workers, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(People.make(10, seed=5), 16)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(People.make(30, seed=6), 16)


class Block(nn.Module):
    """A layer with everything that can leak: BatchNorm's statistics and dropout."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.relu(self.norm(self.linear(x))))


class Network(nn.Module):
    """A stem, a stack of blocks and a head."""

    def __init__(self, depth: int = 4, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Classifier(pl.LightningModule):
    """A LightningModule as people write them: metrics as attributes, a OneCycle schedule over the fit."""

    def __init__(self, depth: int = 4, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.network = Network(depth)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.forgotten: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.accuracy(self(x), y)
        self.log("test_accuracy", self.accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_forget(self, receipt: Any) -> None:
        self.forgotten.append(receipt)


ARGUMENTS: dict[str, Any] = {
    "shards": 2,
    "slices": 2,
    "budget": 2,
    "subjects": "owners",
    "adapter": {"peft_type": "LORA", "r": 2, "lora_dropout": 0.1},
    "partition": "public",  # tests name places, and compare stores
}

OF_ANY_METHOD = {name: ARGUMENTS[name] for name in ("subjects", "adapter", "partition")}


class UnitLog(Callback):
    """Notes which units are trained, in a file: what a callback keeps in memory does not come out of a unit's process.

    Args:
        path: The file.
        every_batch: Note the unit at each batch, and not only at its start.
    """

    def __init__(self, path: Path, every_batch: bool = False) -> None:
        self.path = path
        self.every_batch = every_batch

    @property
    def units(self) -> list[str]:
        """What was noted."""
        return self.path.read_text().split() if self.path.exists() else []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.every_batch:
            self._note(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.every_batch:
            self._note(trainer)

    def _note(self, trainer: pl.Trainer) -> None:
        s3t = next(c for c in trainer.callbacks if isinstance(c, S3T))  # type: ignore[attr-defined]
        with self.path.open("a") as file:
            file.write(f"{s3t.current_unit}\n")


def make_trainer(store: Path, *callbacks: Callback, epochs: int = 2, **arguments: Any) -> pl.Trainer:
    """A trainer with the S3T callback, or with another `method`, quiet and on the CPU."""
    trainer_arguments = arguments.pop("trainer", {})
    method = arguments.pop("method", None)
    if method is None:
        s3t: Unlearning = S3T(store=store, **{**ARGUMENTS, **arguments})
    else:
        s3t = Unlearning(method, store, **{**OF_ANY_METHOD, **arguments})
    defaults: dict[str, Any] = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": store.parent,
    }
    return pl.Trainer(callbacks=[s3t, *callbacks], **{**defaults, **trainer_arguments})


def fit(
    store: Path,
    people: People,
    *callbacks: Callback,
    module: pl.LightningModule | None = None,
    **arguments: Any,
) -> pl.LightningModule:
    """Fit into a store, and return the module."""
    module = module if module is not None else Classifier()
    workers = arguments.pop("workers", 0)
    make_trainer(store, *callbacks, **arguments).fit(module, datamodule=PeopleData(people, workers))
    return module


def tensors_of(store: Path) -> dict[UnitId, dict[str, Tensor]]:
    """Everything that can serve: the tensors of each unit that is alive."""
    with Store.open(store) as opened:
        return {unit: opened.load(unit) for unit in opened.alive()}


def assert_bitwise_equal(first: dict[Any, dict[str, Tensor]], second: dict[Any, dict[str, Tensor]]) -> None:
    """Equal to the last bit, NaNs and signs of zeros included."""
    assert sorted(first) == sorted(second)
    for unit, tensors in first.items():
        assert sorted(tensors) == sorted(second[unit])
        for name, tensor in tensors.items():
            other = second[unit][name]
            assert tensor.dtype == other.dtype
            assert tensor.numpy().tobytes() == other.numpy().tobytes(), f"{name} of unit {unit} differs"
