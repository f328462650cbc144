"""Slice-wise unfreezing, used on its own."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_s3t import SliceUnfreezing
from lightning_s3t.errors import ConfigurationError
from tests.people import ARGUMENTS, Classifier, People, PeopleData


class Watch(Callback):
    """Notes what is trainable in each epoch, and how many optimizer steps have been made."""

    def __init__(self) -> None:
        self.trainable: list[set[str]] = []
        self.optimizers: list[int] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trainable.append({name for name, p in pl_module.named_parameters() if p.requires_grad})
        self.optimizers.append(id(trainer.optimizers[0]))


class Plain(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def train(module: pl.LightningModule, unfreezing: SliceUnfreezing, epochs: int) -> Watch:
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[unfreezing, watch],
    )
    trainer.fit(module, datamodule=PeopleData(People.make()))
    return watch


def test_each_stage_trains_its_own_group_and_the_head() -> None:
    unfreezing = SliceUnfreezing(slices=2, epochs_per_slice=2, adapter=ARGUMENTS["adapter"])
    watch = train(Plain(), unfreezing, epochs=5)
    groups = [{name.split(".")[2] for name in names if "blocks" in name} for names in watch.trainable]
    assert groups == [{"2", "3"}, {"2", "3"}, {"0", "1"}, {"0", "1"}, {"0", "1"}]
    assert all("network.head.weight" in names for names in watch.trainable)
    assert len(set(watch.optimizers)) == 2


def test_the_trained_modules_stay_in_place_and_act() -> None:
    module = Plain().eval()
    x = torch.randn(4, 8)
    before = module(x)
    train(module, SliceUnfreezing(slices=2, adapter=ARGUMENTS["adapter"]), epochs=2)
    assert type(module.network.blocks[0].linear).__name__ == "Linear"
    assert hasattr(module.network.blocks[0].linear, "base_layer")
    assert not torch.equal(module.eval()(x), before)


def test_whole_layers_are_trained_without_an_adapter() -> None:
    watch = train(Plain(), SliceUnfreezing(slices=4, adapter=None), epochs=4)
    stages = [sorted({name.split(".")[2] for name in names if "blocks" in name}) for names in watch.trainable]
    assert stages == [["3"], ["2"], ["1"], ["0"]]


@pytest.mark.parametrize("argument", ["slices", "epochs_per_slice"])
def test_bad_arguments_are_refused(argument: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected argument `{argument}` to be a positive integer but got 0"):
        SliceUnfreezing(**{"slices": 2, argument: 0})
