"""The autoencoder of Lightning's first example, with its classes fixed in the LightningCLI."""

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitAutoEncoder(L.LightningModule):
    def __init__(self, hidden: int = 32, code: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, code))
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        x = x.view(x.size(0), -1)
        loss = nn.functional.mse_loss(self(x), x)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        (x,) = batch
        x = x.view(x.size(0), -1)
        self.log("test_loss", nn.functional.mse_loss(self(x), x))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Blobs(L.LightningDataModule):
    def __init__(self, batch_size: int = 8):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        centre = torch.rand(100, 1, 1, generator=generator)
        self.blobs = TensorDataset(torch.exp(-((torch.linspace(0, 1, 8) - centre) ** 2)).expand(100, 8, 8).clone())

    def train_dataloader(self):
        return DataLoader(self.blobs, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.blobs, batch_size=self.batch_size)


if __name__ == "__main__":
    LightningCLI(LitAutoEncoder, Blobs)
