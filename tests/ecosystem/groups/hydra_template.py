"""The script of lightning-hydra-template: everything is made from YAML, then fitted, then tested."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, random_split
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import Accuracy

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import StoreMismatchError
from lightning_s3t.store import Store
from tests.ecosystem.cases import Samples, behaves
from tests.ecosystem.scripts import vectors
from tests.ecosystem.story import QUIET

LIBRARIES = ("lightning", "torch", "torchmetrics", "hydra-core", "omegaconf")

CONFIG = """
seed: 12345
model:
  _target_: tests.ecosystem.groups.hydra_template.DenseLit
  net:
    _target_: tests.ecosystem.groups.hydra_template.SimpleDenseNet
    input_size: 8
    width: 16
    output_size: 2
  optimizer:
    _target_: torch.optim.Adam
    _partial_: true
    lr: 0.01
  scheduler:
    _target_: torch.optim.lr_scheduler.ReduceLROnPlateau
    _partial_: true
    mode: min
    patience: 10
  compile: false
data:
  _target_: tests.ecosystem.groups.hydra_template.Vectors
  batch_size: 8
callbacks:
  model_checkpoint:
    _target_: lightning.pytorch.callbacks.ModelCheckpoint
    dirpath: ${folder}/checkpoints
    monitor: val/acc
    mode: max
    save_last: true
    auto_insert_metric_name: false
  early_stopping:
    _target_: lightning.pytorch.callbacks.EarlyStopping
    monitor: val/acc
    patience: 100
    mode: max
  model_summary:
    _target_: lightning.pytorch.callbacks.RichModelSummary
  rich_progress_bar:
    _target_: lightning.pytorch.callbacks.RichProgressBar
  s3t:
    _target_: lightning_s3t.S3T
    store: ${folder}/store
    shards: 2
    slices: 2
    budget: 1
    subjects: owners
logger:
  _target_: lightning.pytorch.loggers.CSVLogger
  save_dir: ${folder}
  name: csv
trainer:
  _target_: lightning.pytorch.Trainer
  default_root_dir: ${folder}
  max_epochs: 8
  accelerator: cpu
"""


class SimpleDenseNet(nn.Module):
    def __init__(self, input_size: int, width: int, output_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for taken in (input_size, width, width):
            layers += [nn.Linear(taken, width), nn.BatchNorm1d(width), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Linear(width, output_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1))


class DenseLit(pl.LightningModule):
    """The template's module: metrics as attributes, optimizer and scheduler as partials among the hyperparameters."""

    def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any, compile: bool) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc, self.test_acc = (Accuracy("multiclass", num_classes=2) for _ in range(3))
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric() for _ in range(3))
        self.val_acc_best = MaxMetric()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_start(self) -> None:
        self.val_loss.reset()
        self.val_acc.reset()
        self.val_acc_best.reset()

    def step(self, batch: Any, part: str) -> Tensor:
        logits = self(batch[0])
        loss = self.criterion(logits, batch[1])
        mean, accuracy = getattr(self, f"{part}_loss"), getattr(self, f"{part}_acc")
        mean(loss)
        accuracy(logits.argmax(1), batch[1])
        self.log(f"{part}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{part}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def setup(self, stage: str) -> None:
        if self.hparams.compile and stage == "fit":
            self.net = torch.compile(self.net)

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class Vectors(pl.LightningDataModule):
    """The template's data: parts are put together in setup, and split by a seeded generator."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_train: Dataset[Any] | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.data_train is None:
            rows = vectors(120)
            owners = [f"user-{row}" for row in range(120)]
            whole = ConcatDataset([Samples(rows[:90], owners[:90]), Samples(rows[90:], owners[90:])])
            parts = random_split(whole, [80, 20, 20], generator=torch.Generator().manual_seed(42))
            self.data_train, self.data_val, self.data_test = parts

    def train_dataloader(self) -> Any:
        return DataLoader(self.data_train, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data_val, self.hparams.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(self.data_test, self.hparams.batch_size)


def train(folder: Path, seed: int | None) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The template's `train`: instantiates, fits, tests the best checkpoint or the module; returns the metrics."""
    config = OmegaConf.create(CONFIG)
    config.folder = str(folder)
    assert isinstance(config, DictConfig)
    if seed is not None:
        pl.seed_everything(seed, workers=True, verbose=False)
    data, model = instantiate(config.data), instantiate(config.model)
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    logger = instantiate(config.logger)
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=logger)
    logger.log_hyperparams({"model/params/total": sum(p.numel() for p in model.parameters())})
    trainer.fit(model=model, datamodule=data, ckpt_path=None)
    trained = dict(trainer.callback_metrics)
    best = trainer.checkpoint_callback.best_model_path or None
    trainer.test(model=model, datamodule=data, ckpt_path=best, verbose=False)
    return trained, dict(trainer.callback_metrics), model


@behaves("lightning-hydra-template: fit")
def hydra_fit(folder: Path) -> None:
    trained, _, model = train(folder, 12345)
    assert trained["val/acc"] > 0.5  # what the template optimizes by
    with EnsembleModule.from_store(folder / "store", model) as served:
        before = pl.Trainer(**QUIET).test(served, Vectors(8), verbose=False)[0]["test/acc"]
        assert before > 0.6
        owners = [f"user-{row}" for row in range(120)]
        known = next(owner for owner in owners if served.forget([owner], strict=False).revoked)
    train(folder, 12345)
    with Store.open(folder / "store") as opened:
        assert len(opened.alive()) == 4
        assert opened.forgotten([known]) == {known}
        assert opened.verify().passed


@behaves(
    "lightning-hydra-template: its own test after fit",
    warned="it tests the untrained module; a warning says where the trained one is",
)
def hydra_test(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(folder, 12345)
    assert any("EnsembleModule.from_store" in str(found.message) for found in caught)


@behaves(
    "lightning-hydra-template: second run, seed null (its default)",
    reason="a store belongs to one pretrained network: seed it, or load weights",
)
def hydra_again(folder: Path) -> None:
    train(folder, None)
    with pytest.raises(StoreMismatchError, match="drawn at random at every start"):
        train(folder, None)
