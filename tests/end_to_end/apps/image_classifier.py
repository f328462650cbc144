"""An image classifier whose LightningCLI takes any model and any data: the config names the classes."""

import lightning as L
import torch
import torchmetrics
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, Dataset


class LitClassifier(L.LightningModule):
    def __init__(self, width: int = 8, learning_rate: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, 2),
        )
        self.accuracy = torchmetrics.Accuracy(task="binary")

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self(x).argmax(-1), y)
        self.log("test_accuracy", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


class Stripes(Dataset):
    """Pictures with stripes one way or the other, taken by 20 people."""

    def __init__(self, pictures: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(pictures) % 2
        wave = torch.sin(torch.arange(8.0)) * torch.ones(8, 1)
        stripes = torch.stack([wave, wave.T])[self.labels]
        self.pictures = (stripes + torch.randn(pictures, 8, 8, generator=generator) / 2).unsqueeze(1)
        self.owners = [f"user-{row // 2 % 20}" for row in range(pictures)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.pictures[row], self.labels[row]


class StripesData(L.LightningDataModule):
    def __init__(self, pictures: int = 80, batch_size: int = 8):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.train = Stripes(self.hparams.pictures)
        self.val = Stripes(16, seed=1)
        self.test = Stripes(40, seed=2)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.hparams.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=self.hparams.batch_size)


if __name__ == "__main__":
    LightningCLI()
