"""Lightning's own examples, in their own form on small data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
import torchvision
from lightning.pytorch.callbacks import BaseFinetuning, Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos import Transformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchvision.utils import save_image

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.store import Store
from tests.ecosystem.cases import Samples, Script, Variant, behaves, exact, loader, refused
from tests.ecosystem.scripts import generator, pictures, script
from tests.ecosystem.story import QUIET
from tests.end_to_end.apps.autoencoder import LitAutoEncoder
from tests.end_to_end.apps.gan import GAN

LIBRARIES = ("lightning", "torch", "torchvision", "torchmetrics", "jsonargparse")
ROOT = Path(__file__).parents[3]
LAYERS: dict[str, dict[str, Any]] = {
    "autoencoder": {"layers": ["encoder.0", "encoder.2", "decoder.0"], "head": "decoder.2"},
    "gan": {"layers": ["generator.model.0", "generator.model.3"], "head": ["generator.model.6", "discriminator"]},
}
QUIET_CLI = [f"--trainer.{name}={str(value).lower()}" for name, value in QUIET.items()] + ["--trainer.max_epochs=1"]


def s3t_options(store: Path, **arguments: Any) -> list[str]:
    """What a LightningCLI is given to add the callback."""
    given = {"store": store, "shards": 2, "slices": 2, "budget": 1, "partition": "public", **arguments}
    options = [f"--trainer.callbacks.{name}={value}" for name, value in given.items()]
    return ["--trainer.callbacks+=lightning_s3t.S3T", *options]


class Backbone(nn.Module):
    """The backbone of the example: two layers, the second of which is the head."""

    def __init__(self, hidden_dim: int = 16) -> None:
        super().__init__()
        self.l1 = nn.Linear(64, hidden_dim)
        self.l2 = nn.Linear(hidden_dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.l2(torch.relu(self.l1(x.flatten(1)))))


class LitClassifier(pl.LightningModule):
    def __init__(self, backbone: Backbone | None = None, learning_rate: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone"])
        self.backbone = backbone if backbone is not None else Backbone()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("valid_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


class Digits(pl.LightningDataModule):
    """MNIST as the examples have it: split in the constructor by a seeded generator."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        images = torch.rand(80, 1, 8, 8, generator=generator())
        digits = TensorDataset(images, (images.mean((1, 2, 3)) * 10).long())
        self.train, self.val = random_split(digits, [64, 16], generator=generator(42))
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class ImageSampler(Callback):
    """The autoencoder's callback: writes reconstructions, by the module, at the end of each epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        images, _ = next(iter(DataLoader(trainer.datamodule.train, 4)))
        pl_module.eval()
        reconstructed = pl_module(images.flatten(1))
        pl_module.train()
        save_image(
            reconstructed.view(-1, 1, 8, 8), Path(trainer.default_root_dir) / f"epoch_{trainer.current_epoch}.png"
        )


class Coder(LitAutoEncoder):
    """The autoencoder over pairs of picture and label."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[:1], batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch[:1], batch_idx)


def run_cli(folder: Path, module: type[pl.LightningModule], *arguments: str, **cli: Any) -> LightningCLI:
    """A LightningCLI as an app starts it."""
    given = ["fit", *QUIET_CLI, f"--trainer.default_root_dir={folder}", *arguments]
    return LightningCLI(
        module, Digits, args=given, save_config_kwargs={"overwrite": True}, seed_everything_default=1234, **cli
    )


def serve_and_forget(cli: LightningCLI, store: Path) -> None:
    """The ensemble is tested, a row is forgotten, the next fit trains what is missing, and all verifies."""
    with EnsembleModule.from_store(store, cli.model) as served:
        assert pl.Trainer(**QUIET).test(served, cli.datamodule, verbose=False)[0]
        assert served.forget(["3"]).revoked
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    with Store.open(store) as opened:
        assert len(opened.alive()) == len(opened.candidates())
        assert opened.verify().passed


@behaves("Lightning: backbone_image_classifier (CLI)", needed="slices=1")
def backbone(folder: Path) -> None:
    store = folder / "store"
    cli = run_cli(folder, LitClassifier, *s3t_options(store, slices=1, shards=3, subjects="index"))
    with pytest.raises(UnsupportedError, match=r"EnsembleModule\.from_store"):  # the example's own last lines
        cli.trainer.test(ckpt_path="best", datamodule=cli.datamodule, verbose=False)
    serve_and_forget(cli, store)
    with EnsembleModule.from_store(store, cli.model) as served:
        assert torch.cat(pl.Trainer(**QUIET).predict(served, cli.datamodule)).shape == (16, 10)


@behaves("Lightning: autoencoder (CLI, ImageSampler callback)", needed="layers, head")
def autoencoder(folder: Path) -> None:
    layers = {name: str(value).replace("'", "").replace(" ", "") for name, value in LAYERS["autoencoder"].items()}
    sampler = {"trainer_defaults": {"callbacks": ImageSampler()}}
    cli = run_cli(folder, Coder, *s3t_options(folder / "store", subjects="index", **layers), **sampler)
    assert list(folder.glob("epoch_*.png"))
    serve_and_forget(cli, folder / "store")


class Portraits(Samples):
    """Pictures alone."""

    def __getitem__(self, row: int) -> Any:
        return self.samples[row][0][0]


@exact("Lightning: generative_adversarial_net", "layers, head, aggregate='single'")
def gan(variant: Variant) -> Script:
    samples = pictures(40, 4, 1)
    test = loader(Portraits(samples, [""] * 40), shuffle=False)
    train = variant.samples(samples)
    return Script(
        GAN(), loader(Portraits(train.samples, train.owners)), test, s3t=LAYERS["gan"], serving={"aggregate": "single"}
    )


class LitTransformer(pl.LightningModule):
    """The language model of Lightning's demos."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=90, ninp=16, nhead=2, nhid=32, nlayers=2)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        return self.model(inputs, target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        return nn.functional.nll_loss(self(inputs, target).view(-1, 90), target.view(-1))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def texts(rows: int = 40) -> list[tuple[Tensor, Tensor]]:
    drawn = torch.randint(0, 90, (rows, 9), generator=generator())
    return [(row[:-1], row[1:]) for row in drawn]


@exact("Lightning: transformer (WikiText2-like data)")
def transformer(variant: Variant) -> Script:
    return script(variant, LitTransformer(), texts())


class TransferLearning(pl.LightningModule):
    """The fine-tuning example: a frozen torchvision backbone without its last layer, and a new classifier."""

    def __init__(self) -> None:
        super().__init__()
        backbone = torchvision.models.resnet18(weights=None)
        self.feature_extractor = nn.Sequential(*list(backbone.children())[:-1])
        self.fc = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 1))
        self.train_acc = torchmetrics.Accuracy("binary")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.feature_extractor(x).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])[:, 0]
        self.log("train_acc", self.train_acc(logits.sigmoid(), batch[1].int()))
        return nn.functional.binary_cross_entropy_with_logits(logits, batch[1].float())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float()))

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4], gamma=0.1)]


class MilestonesFinetuning(BaseFinetuning):
    """Freezes the backbone at the start, and unfreezes it at some epochs."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.feature_extractor)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.feature_extractor[-3:], optimizer)


exact("Lightning: computer_vision_fine_tuning, without its callback")(
    lambda v: script(v, TransferLearning(), pictures(20), batch_size=4)
)


@refused(
    "Lightning: computer_vision_fine_tuning, MilestonesFinetuning", "UnsupportedError", "MilestonesFinetuning",
    "it freezes and unfreezes layers too",
)  # fmt: skip
def milestones(variant: Variant) -> Script:
    made = script(variant, TransferLearning(), pictures(20), batch_size=4)
    made.trainer = {"callbacks": [MilestonesFinetuning()]}
    return made


@behaves("s3t store audit of an app with fixed classes and save_hyperparameters()")
def audited(folder: Path) -> None:
    script_path = folder / "app.py"
    script_path.write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "from tests.ecosystem.groups.examples import Digits, LitClassifier\n"
        "if __name__ == '__main__':\n"
        "    LightningCLI(LitClassifier, Digits)\n"
    )
    options = s3t_options(Path("store"), subjects="index", slices=1, shards=3)

    def call(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("app.py", "fit", *QUIET_CLI, *options)
    call("-m", "lightning_s3t", "forget", "store", "3")
    assert "test_loss" in call("-m", "lightning_s3t", "test", "--store", "store")
    call("-m", "lightning_s3t", "store", "audit", "store", "--units", "1")
