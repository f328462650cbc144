"""Ten in a hundred more people on digits: a shard of their own against training again: `python -m tests.benchmarks.growth`.

A small ViT, trained on public rows, is fine-tuned by five shards of four slices on nine tenths of the people. The others
come later: once with `newcomers="append"`, once with "retrain". What it costs is counted in samples (rows of a unit, for
as many epochs), in multiples of the first fit, with the wall clock beside it. Mark: appending costs at most 0.15 of the
first fit, in samples.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_s3t import S3T, EnsembleModule, Store
from lightning_s3t.zoo.datamodules import OwnedRows
from lightning_s3t.zoo.demo.digits import Digits, accuracy
from lightning_s3t.zoo.demo.training import ADAPTER, DemoSettings, make_trainer, train_publicly
from lightning_s3t.zoo.models import ImageClassifier

SEEDS, PEOPLE, NEWCOMERS, EPOCHS = 3, 200, 20, 8
MARK = 0.15


@dataclass(frozen=True)
class Fitted:
    """What a fit has done.

    Attributes:
        accuracy: Of the ensemble, in %.
        samples: Rows of all units that it has trained.
        seconds: How long it took.
    """

    accuracy: float
    samples: int
    seconds: float


def fit(
    store: Path,
    model: ImageClassifier,
    rows: OwnedRows,
    seed: int,
    digits: Digits,
    newcomers: Literal["append", "retrain"],
) -> Fitted:
    """Fit rows into a store."""
    s3t = S3T(
        store,
        shards=5,
        slices=4,
        budget=1,
        sequences="cyclic",
        subjects="owners",
        adapter=ADAPTER,
        seed=seed,
        partition="public",
        newcomers=newcomers,
    )
    before = {unit: record.snapshot for unit, record in _alive(store).items()}
    make_trainer(EPOCHS, s3t).fit(model, DataLoader(rows, batch_size=32, shuffle=True))
    trained = [record for unit, record in _alive(store).items() if before.get(unit) != record.snapshot]
    with EnsembleModule.from_store(store, model) as served:
        right = 100 * accuracy(served, digits.test)
    assert s3t.summary is not None
    return Fitted(right, sum(record.provenance["rows"] for record in trained), s3t.summary.seconds)


def _alive(store: Path) -> dict:
    if not store.exists():
        return {}
    with Store.open(store) as opened:
        return opened.alive()


def grow(seed: int, folder: Path) -> dict[str, Fitted]:
    """Train on nine tenths of the people, and add the others in both ways."""
    digits = Digits.load(PEOPLE, seed)
    model = train_publicly(digits.public, DemoSettings(seed=seed, people=PEOPLE, public_epochs=10))
    later = {f"person-{number}" for number in range(NEWCOMERS)}
    first = [number for number, owner in enumerate(digits.private.owners) if owner not in later]
    some = OwnedRows([digits.private.rows[n] for n in first], [digits.private.owners[n] for n in first])
    found = {"first": fit(folder / "append", model, some, seed, digits, "append")}
    shutil.copytree(folder / "append", folder / "retrain")
    for way in ("append", "retrain"):
        found[way] = fit(folder / way, model, digits.private, seed, digits, way)  # type: ignore[arg-type]
    return found


def main(arguments: list[str]) -> int:
    """Print the table; return 1 if the mark is missed."""
    seeds = range(int(arguments[0]) if arguments else SEEDS)
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            runs.append(grow(seed, Path(name)))
    table = Table("fit", "accuracy %", "samples", "seconds", title=f"{NEWCOMERS / PEOPLE:.0%} more people on digits")
    shares = {}
    for way in ("first", "append", "retrain"):
        shares[way] = statistics.mean(run[way].samples / run["first"].samples for run in runs)
        seconds = statistics.mean(run[way].seconds / run["first"].seconds for run in runs)
        right = [run[way].accuracy for run in runs]
        table.add_row(way, f"{statistics.mean(right):.2f}", f"{shares[way]:.3f}", f"{seconds:.2f}")
    Console().print(table)
    return int(shares["append"] > MARK)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
