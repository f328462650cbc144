"""Training a unit through the callback, against the same steps by hand and by Lightning alone.

`python -m tests.benchmarks.training`. All three train the top adapters and the head of one small vision transformer on the
same tensors, batch by batch, with AdamW; for the callback everything counts, from `fit` to the committed unit. All three
train in the script's process (`isolation="none"`); what processes of their own cost is in `isolation.py`. Marks: 1.10 times
the loop by hand, 1.02 times Lightning without the callback.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.stage_switch import StageSwitch
from tests.benchmarks.timing import ratio, take_turns
from tests.benchmarks.vision import DEVICE, Classifier, make_trainer, random_images

STEPS, BATCH, SIZE, ROUNDS = 200, 32, 64, 5
ADAPTER = {"peft_type": "LORA", "r": 8, "target_modules": ["qkv"]}
MARK_BY_HAND, MARK_LIGHTNING = 1.10, 1.02


def make_module() -> Classifier:
    """A small vision transformer."""
    return Classifier(img_size=SIZE, depth=6)


def staged() -> Classifier:
    """The module with the adapters of the one stage in place, as the callback puts them."""
    module = make_module()
    StageSwitch(module, slices=1, adapter=resolve_adapter(ADAPTER)).enter(1, {}, seed=0)
    return module


def main() -> int:
    """Time all three in turn; return 1 above a mark."""
    torch.set_num_threads(1)
    loader = DataLoader(random_images(STEPS * BATCH, SIZE), BATCH, shuffle=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = iter(range(1000))

        def by_callback() -> None:
            s3t = S3T(
                folder / str(next(stores)),
                shards=1,
                slices=1,
                budget=1,
                subjects="index",
                adapter=ADAPTER,
                isolation="none",
            )
            make_trainer(folder, s3t).fit(make_module(), loader)

        def by_lightning() -> None:
            make_trainer(folder).fit(staged(), loader)

        def by_hand() -> None:
            module = staged().train().to(DEVICE)
            optimizer = module.configure_optimizers()
            for images, labels in loader:
                optimizer.zero_grad()
                module.training_step((images.to(DEVICE), labels.to(DEVICE)), 0).backward()
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
