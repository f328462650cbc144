"""The GAN of Lightning's documentation: manual optimization, two optimizers."""

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Generator(nn.Module):
    def __init__(self, latent_dim: int):
        super().__init__()

        def block(in_features, out_features):
            return [nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features), nn.LeakyReLU(0.2)]

        self.model = nn.Sequential(*block(latent_dim, 16), *block(16, 32), nn.Linear(32, 16), nn.Tanh())

    def forward(self, z):
        return self.model(z).view(z.size(0), 4, 4)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(16, 32), nn.LeakyReLU(0.2), nn.Linear(32, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)
        )

    def forward(self, images):
        return self.model(images.flatten(1))


class GAN(L.LightningModule):
    def __init__(self, latent_dim: int = 8, lr: float = 1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(latent_dim)
        self.discriminator = Discriminator()

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, answer, real: bool):
        target = torch.ones_like(answer) if real else torch.zeros_like(answer)
        return nn.functional.binary_cross_entropy_with_logits(answer, target)

    def training_step(self, images):
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(images.size(0), self.hparams.latent_dim).type_as(images)

        self.toggle_optimizer(optimizer_g)
        self.generated_images = self(z)
        g_loss = self.adversarial_loss(self.discriminator(self.generated_images), real=True)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(images), real=True)
        fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), real=False)
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def test_step(self, images):
        generated = self(torch.randn(images.size(0), self.hparams.latent_dim).type_as(images))
        self.log("mean_brightness", generated.mean())

    def configure_optimizers(self):
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
        return [opt_g, opt_d], []


class Portraits(Dataset):
    """Pictures of 4 by 4, three of each of 20 people."""

    def __init__(self, pictures: int):
        self.owners = [f"user-{row % 20}" for row in range(pictures)]
        self.pictures = torch.rand(pictures, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, row):
        return self.pictures[row]


class PortraitsData(L.LightningDataModule):
    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(Portraits(60), batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self):
        return DataLoader(Portraits(20), batch_size=self.batch_size)


if __name__ == "__main__":
    LightningCLI(GAN, PortraitsData, seed_everything_default=1)
