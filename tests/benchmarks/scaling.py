"""How cost grows: `python -m tests.benchmarks.scaling [--large] [--pictures FOLDER]`.

Training time against the number of orders, slices and shards, with a small network on digits, and beside it what
`plan.cost_of` says: seconds a fit, a unit and a row seen, fitted to all fits at once. Units are trained in the script's
process; what processes of their own add is in `isolation.py`. The time of a request against the number of units in a store
(to 1,000; with `--large` 10,000). The memory of a served ensemble against its number of shards. Marks: the fit explains
training times to within 15 % on average; a request takes no more than 25 microseconds longer for every unit in the store; a
shard more takes no more than 5 % of the network.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.plan import UnitId, cyclic, units_of
from lightning_s3t.plan.cost import cost_of
from lightning_s3t.store import Store
from tests.benchmarks.filled_store import fill
from tests.benchmarks.vision import Classifier, make_trainer
from tests.store.people_store import session

ROWS, BATCH, EPOCHS = 600, 8, 2
ADAPTER = {"peft_type": "LORA", "r": 4}
VISION_ADAPTER = {"peft_type": "LORA", "r": 4, "target_modules": ["qkv"]}
# shards, slices, orders: one of them varies
TRAINED = {
    "orders": [(1, 4, orders) for orders in (1, 2, 4, 8)],
    "slices": [(1, slices, 1) for slices in (1, 3, 6, 12)],
    "shards": [(shards, 3, 1) for shards in (1, 2, 4)],
}
REQUESTS, ENSEMBLES = 10, (1, 2, 5, 10, 20)
MARK_FIT, MARK_REQUEST, MARK_SHARD = 0.15, 25.0, 0.05


class Plain(pl.LightningModule):
    """Twelve small blocks between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(12)]
        self.network = nn.ModuleDict(
            {"stem": nn.Linear(64, 64), "blocks": nn.Sequential(*blocks), "head": nn.Linear(64, 10)}
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a batch's loss."""
        x = self.network["blocks"](self.network["stem"](batch[0]))
        return nn.functional.cross_entropy(self.network["head"](x), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@dataclass(frozen=True)
class Trained:
    """A fit: its shape, what it cost, and how long it took."""

    shards: int
    slices: int
    orders: int
    units: int
    rows: float
    seconds: float


def train(folder: Path, shards: int, slices: int, orders: int) -> Trained:
    """Train all units of a new store."""
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.rand(ROWS, 64, generator=draw), torch.randint(10, (ROWS,), generator=draw))
    s3t = S3T(
        folder, shards=shards, slices=slices, budget=orders, subjects="index", layers="network.blocks",
        head="network.head", adapter=ADAPTER, isolation="none",
    )  # fmt: skip
    trainer = make_trainer(folder.parent, s3t, max_epochs=EPOCHS)
    start = time.perf_counter()
    trainer.fit(Plain(), DataLoader(data, BATCH, shuffle=True))
    seconds = time.perf_counter() - start
    cost = cost_of(s3t.sequences)
    # a fine-tune of a shard sees each of its rows once an epoch, and the shards' rows add up to all
    return Trained(shards, slices, orders, shards * cost.units, ROWS * EPOCHS * cost.fine_tunes, seconds)


def train_all() -> dict[str, list[Trained]]:
    """Train every shape; once before, to warm up."""
    cases = [(name, case) for name, group in TRAINED.items() for case in group]
    found: dict[str, list[Trained]] = {name: [] for name in TRAINED}
    with tempfile.TemporaryDirectory() as name:
        train(Path(name) / "first", 1, 1, 1)
        for number, (group, case) in enumerate(track(cases, "training", console=Console(stderr=True), transient=True)):
            found[group].append(train(Path(name) / str(number), *case))
    return found


@dataclass(frozen=True)
class Cost:
    """Seconds of training, fitted: so many a fit, a unit and a row, and the mean relative error."""

    fit: float
    unit: float
    row: float
    error: float

    @classmethod
    def of(cls, trained: Sequence[Trained]) -> Cost:
        """Fit them to all fits at once."""
        seconds = np.array([t.seconds for t in trained])
        # relative errors are what is made small
        features = np.array([[1, t.units, t.rows] for t in trained]) / seconds[:, None]
        found, *_ = np.linalg.lstsq(features, np.ones(len(seconds)), rcond=None)
        return cls(*map(float, found), float(np.abs(features @ found - 1).mean()))

    def __call__(self, trained: Trained) -> float:
        """Return the seconds that a fit should take."""
        return self.fit + self.unit * trained.units + self.row * trained.rows


def time_requests(most: int) -> dict[int, list[float]]:
    """Return milliseconds of requests for one subject, by the number of units in the store."""
    orders = cyclic(6, 6)
    found = {}
    for shards in (shards for shards in (3, 28, 278) if shards * 36 <= 1.01 * most):
        settings = {"partition": {"shards": shards, "slices": 6, "seed": 0}}
        with tempfile.TemporaryDirectory() as name, Store.create(Path(name) / "store", settings) as store:
            units = units_of(shards, orders)
            for unit in track(units, f"{len(units)} units", console=Console(stderr=True), transient=True):
                session(store).start_unit(unit, "key").commit({"w": torch.rand(1000)}, {})
            times = []
            for subject in range(REQUESTS):
                start = time.perf_counter()
                receipt = store.forget([f"user-{subject}"], strict=False)
                times.append(1000 * (time.perf_counter() - start))
                for revoked in receipt.revoked:  # trained again, so that every request meets a full store
                    session(store).start_unit(UnitId.parse(revoked), "key").commit({"w": torch.rand(1000)}, {})
            found[len(units)] = times
    return found


def live_bytes() -> int:
    """Return the bytes of all tensors that are alive, each memory once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), Tensor) and found.layout is torch.strided:
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure_ensembles() -> tuple[float, dict[int, float]]:
    """Return the MiB of the network alone, and of served modules, which hold one, by their number of shards."""
    found = {}
    for shards in ENSEMBLES:
        with tempfile.TemporaryDirectory() as name:
            module = Classifier(img_size=64, depth=6).eval()
            alone = sum(tensor.nbytes for tensor in module.state_dict().values()) / 2**20
            fill(Path(name) / "store", module, shards, [range(6)], VISION_ADAPTER)
            before = live_bytes()
            served = EnsembleModule.from_store(Path(name) / "store", module)
            with torch.no_grad():
                served(torch.zeros(1, 3, 64, 64))
            found[shards] = (live_bytes() - before) / 2**20
            del served
    return alone, found


def show(trained: dict[str, list[Trained]], cost: Cost) -> Table:
    """Return the table of the fits."""
    table = Table("shards", "slices", "orders", "units", "rows seen", "seconds", "by the fit", title="Training")
    for group in trained.values():
        for t in group:
            numbers = (t.shards, t.slices, t.orders, t.units)
            table.add_row(*map(str, numbers), f"{t.rows:,.0f}", f"{t.seconds:.2f}", f"{cost(t):.2f}")
        table.add_section()
    return table


def draw(
    folder: Path,
    trained: dict[str, list[Trained]],
    cost: Cost,
    requests: dict[int, list[float]],
    ensembles: tuple[float, dict[int, float]],
) -> None:
    """Draw both pictures."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    training = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, group) in zip(training.subplots(1, 3, sharey=True), trained.items(), strict=True):
        numbers = [getattr(t, name) for t in group]
        axes.plot(numbers, [t.seconds for t in group], "o", label="measured")
        axes.plot(numbers, [cost(t) for t in group], label="units and rows")
        axes.set_xlabel(f"number of {name}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylim(bottom=0)
    training.axes[0].set_ylabel("seconds of training")
    training.axes[0].legend(frameon=False)
    after = Figure(figsize=(9, 3), layout="constrained")
    left, right = after.subplots(1, 2)
    left.plot(list(requests), [statistics.median(times) for times in requests.values()], "o-")
    left.set_xscale("log")
    left.set_ylim(bottom=0)
    left.set_xlabel("units in the store")
    left.set_ylabel("milliseconds a request, median")
    alone, sizes = ensembles
    right.plot(list(sizes), list(sizes.values()), "o-", label="the ensemble")
    right.plot(list(sizes), [alone * shards for shards in sizes], "--", label="a network a shard")
    right.set_xlabel("number of shards")
    right.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    right.set_ylabel("MiB of tensors")
    right.legend(frameon=False)
    for axes in (*training.axes, *after.axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    training.savefig(folder / "scaling_training.png", dpi=90)
    after.savefig(folder / "scaling_serving.png", dpi=90)


def main(arguments: Sequence[str] = ()) -> int:
    """Measure all; return 1 beyond a mark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true", help="up to 10,000 units in a store")
    parser.add_argument("--pictures", type=Path, help="write pictures into this folder")
    chosen = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    console = Console(width=150)
    trained = train_all()
    cost = Cost.of([t for group in trained.values() for t in group])
    console.print(show(trained, cost))
    print(f"A fit {1000 * cost.fit:.0f} ms, a unit {1000 * cost.unit:.0f} ms, a row {1e6 * cost.row:.0f} us.")
    print(f"Mean error: {cost.error:.1%} (mark: {MARK_FIT:.0%}).")
    requests = time_requests(10_000 if chosen.large else 1000)
    table = Table("units", "milliseconds, median", "most", title="A request for one subject")
    for units, times in requests.items():
        table.add_row(f"{units:,}", f"{statistics.median(times):.1f}", f"{max(times):.1f}")
    console.print(table)
    first, *_, last = (statistics.median(times) for times in requests.values())
    each = 1000 * (last - first) / (max(requests) - min(requests))
    print(f"A unit more in the store: {each:.1f} microseconds (mark: {MARK_REQUEST:g}).")
    alone, sizes = measure_ensembles()
    table = Table("shards", "MiB of tensors", "of the network", title="A served ensemble")
    for shards, size in sizes.items():
        table.add_row(str(shards), f"{size:.2f}", f"{size / alone:.3f}")
    console.print(table)
    more = (sizes[ENSEMBLES[-1]] - sizes[ENSEMBLES[0]]) / (ENSEMBLES[-1] - ENSEMBLES[0]) / alone
    print(f"A shard more: {more:.1%} of the network (mark: {MARK_SHARD:.0%}).")
    if chosen.pictures is not None:
        draw(chosen.pictures, trained, cost, requests, (alone, sizes))
    return int(cost.error > MARK_FIT or each > MARK_REQUEST or more > MARK_SHARD)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
