"""A small transformer language model, written by hand; the config names the classes."""

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI, OptimizerCallable
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, dropout: float):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.to_logits(self.norm(x))


class LitLanguageModel(L.LightningModule):
    def __init__(
        self,
        width: int = 16,
        depth: int = 4,
        heads: int = 2,
        dropout: float = 0.1,
        optimizer: OptimizerCallable = torch.optim.AdamW,
    ):
        super().__init__()
        self.model = Transformer(128, 16, width, depth, heads, dropout)
        self.optimizer = optimizer

    def loss(self, tokens):
        logits = self.model(tokens[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_perplexity", self.loss(batch).exp())

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Notes(Dataset):
    """Short notes by 20 people, as the codes of their letters."""

    def __init__(self, notes: int):
        self.authors = [f"user-{row % 20}" for row in range(notes)]
        texts = [f"{author} at {row:02d}".ljust(16)[:16] for row, author in enumerate(self.authors)]
        self.tokens = torch.tensor([[ord(letter) for letter in text] for text in texts])

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row):
        return self.tokens[row]


class NotesData(L.LightningDataModule):
    def __init__(self, notes: int = 60, batch_size: int = 8):
        super().__init__()
        self.notes = notes
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(Notes(self.notes), batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self):
        return DataLoader(Notes(20), batch_size=self.batch_size)


if __name__ == "__main__":
    LightningCLI()
