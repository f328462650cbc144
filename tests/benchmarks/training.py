"""Training a unit through the callback, against the same steps by hand and by Lightning alone.

`python -m tests.benchmarks.training`. All three train the top adapters and the head of one small vision transformer on the
same tensors, batch by batch, with AdamW; for the callback everything counts, from `fit` to the committed unit. Marks: 1.10
times the loop by hand, 1.02 times Lightning without the callback.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_s3t import S3T, SliceUnfreezing
from tests.benchmarks.timing import ratio, take_turns

STEPS, BATCH, ROUNDS = 200, 32, 5
ADAPTER = {"peft_type": "LORA", "r": 8, "target_modules": ["qkv"]}
MARK_BY_HAND, MARK_LIGHTNING = 1.10, 1.02


class Classifier(pl.LightningModule):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=6, num_classes=10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns a batch's loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Makes the optimizer."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def make_loader() -> DataLoader[tuple[Tensor, ...]]:
    """Rows for the steps of one epoch."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS * BATCH, 3, 64, 64, generator=draw)
    return DataLoader(TensorDataset(images, torch.randint(10, (len(images),), generator=draw)), BATCH, shuffle=True)


def make_trainer(folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    """A trainer that does nothing but train."""
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )


def staged() -> Classifier:
    """The module with the adapters of the one stage in place, as the callback puts them."""
    module = Classifier()
    unfreezing = SliceUnfreezing(slices=1, adapter=ADAPTER)
    unfreezing.attach(module)
    unfreezing.enter(1, [], seed=0)
    return module


def main() -> int:
    """Times all three in turn; returns 1 above a mark."""
    torch.set_num_threads(1)
    loader = make_loader()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = iter(range(1000))

        def by_callback() -> None:
            s3t = S3T(folder / str(next(stores)), shards=1, slices=1, budget=1, adapter=ADAPTER)
            make_trainer(folder, s3t).fit(Classifier(), loader)

        def by_lightning() -> None:
            make_trainer(folder).fit(staged(), loader)

        def by_hand() -> None:
            module = staged().train()
            optimizer = module.configure_optimizers()
            for images, labels in loader:
                optimizer.zero_grad()
                module.training_step((images, labels), 0).backward()
                optimizer.step()

        contestants: dict[str, Callable[[], None]] = {
            "the callback": by_callback,
            "Lightning alone": by_lightning,
            "a loop by hand": by_hand,
        }
        times = take_turns(contestants, ROUNDS, "training")
    table = Table(
        "", "seconds, median", "the callback takes so many times as long", title=f"{STEPS} steps of a small ViT"
    )
    for contestant, seconds in times.items():
        share = str(ratio(times["the callback"], seconds)) if contestant != "the callback" else ""
        table.add_row(contestant, f"{statistics.median(seconds):.2f}", share)
    Console().print(table)
    hand = ratio(times["the callback"], times["a loop by hand"]).median
    alone = ratio(times["the callback"], times["Lightning alone"]).median
    return int(hand > MARK_BY_HAND or alone > MARK_LIGHTNING)


if __name__ == "__main__":
    sys.exit(main())
