"""Accuracy over requests, with and without closed-form heads: `python -m tests.benchmarks.accuracy [TASK ...]`.

Two tasks, each with a small model that the script trains on public rows first: `digits` (images, those of scikit-learn) and
`text` (which package is a docstring from; the docstrings are those of the packages installed here). One person after the
other asks to be forgotten, until nine of ten have, and there is no fit in between. Compared are S3T as it is without a
floor; with a floor on the head's input; with heads on survivors too; with a floor on four layers; that floor by itself;
S3T with twice as many slices, which share the four layer groups; and SISA. All are trained with the same seeds, so that
S3T's units are the same. Beside them stand fine-tunes of the same adapters on all rows that are left.

Marks, for the mean over the seeds: with the floor on four layers never more than 0.5 points below that floor by itself;
and with it, before any request, at least 0.4 of what sharding took from the fine-tune is given back.

Each task and seed is a file, `TASK-SEED.json`, in the folder that `--output` names (build/accuracy). What is there is not
measured again, and several processes can measure other seeds in one folder. Tables and `accuracy.png` have the variants
that all these seeds have.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_s3t import S3T, EnsembleModule, Floor, Store
from lightning_s3t.errors import NoSurvivorError
from lightning_s3t.zoo.demo.digits import Digits
from lightning_s3t.zoo.demo.training import ADAPTER, DemoSettings, make_trainer, train_publicly
from lightning_s3t.zoo.models import ImageClassifier, TextClassifier
from tests.benchmarks.docstrings import LENGTH, PRIVATE, PUBLIC, VOCABULARY, load_docstrings

SHARDS, SLICES, BUDGET = 5, 4, 4
MARKS = (0.005, 0.4)
COLOURS = ("#3b5bdb", "#74b816", "#862e9c", "#2b8a3e", "#868e96", "#1098ad", "#e8590c")
NOTHING = "nothing answers"
# by variant: the store that it is trained on top of, and the arguments of S3T; None to drop the units instead
WAYS: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "S3T": (None, {}),
    "with floor": ("S3T", {"floor": Floor()}),
    "with heads": ("S3T", {"floor": Floor(survivors=True)}),
    "with layers": ("S3T", {"floor": Floor(layers=4)}),
    "floor alone": ("with layers", None),
    "finer slices": (None, {"slices": 2 * SLICES, "groups": SLICES, "budget": 2 * BUDGET}),
    "SISA": (None, {"budget": 1, "sequences": "sisa"}),
}
MARKED = ("S3T", "with layers", "floor alone")


class Owned(Dataset[Any]):
    """Rows with owners."""

    def __init__(self, rows: Sequence[Any], owners: Sequence[str]) -> None:
        self.rows, self.owners = list(rows), list(owners)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


@dataclass(frozen=True)
class Task:
    """A task whose model is trained on public rows.

    Attributes:
        model: The model, with a new head.
        private: The rows of people.
        test: A batch to test on.
        inputs: Gives what the model is called with, of a batch.
        labels: Gives the labels.
        adapter: The adapter.
        epochs: Epochs of a stage.
        batch: Rows of a batch.
    """

    model: pl.LightningModule
    private: Owned
    test: Any
    inputs: Callable[[Any], Any]
    labels: Callable[[Any], torch.Tensor]
    adapter: dict[str, Any]
    epochs: int
    batch: int

    def people(self, seed: int) -> list[str]:
        """Return the people, in the order in which they ask."""
        people = sorted(set(self.private.owners))
        random.Random(seed).shuffle(people)
        return people

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of the test rows that are classified correctly; NaN where nothing answers."""
        labels = self.labels(self.test)
        with torch.no_grad():
            try:
                return float((model(self.inputs(self.test)).argmax(-1) == labels).float().mean())
            except NoSurvivorError:
                return float("nan")


def make_digits(seed: int) -> Task:
    """The demo's digits, of 200 people, and a ViT that was trained on the public ones for ten epochs."""
    settings = replace(DemoSettings(), seed=seed, people=200, public_epochs=10)
    digits = Digits.load(settings.people, seed)
    model: ImageClassifier = train_publicly(digits.public, settings)
    model.network.reset_classifier(10)
    private = Owned(digits.private.rows, digits.private.owners)
    return Task(model, private, digits.test, lambda test: test[0], lambda test: test[1], ADAPTER, 8, 32)


def make_text(seed: int) -> Task:
    """Docstrings of eight packages, whose owners are the files, and a BERT that was trained on those of eight others."""
    torch.manual_seed(seed)
    config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": LENGTH,
    }
    model = TextClassifier(num_classes=8, config=config, learning_rate=2e-3, weight_decay=0.01, warmup=0.1)
    public, _ = load_docstrings(PUBLIC, 450, seed)
    make_trainer(10).fit(model, DataLoader(Owned(public, [""] * len(public)), 32, shuffle=True))
    rows, owners = load_docstrings(PRIVATE, 250, seed)
    files = sorted(set(owners))
    random.Random(seed).shuffle(files)
    tested = set(files[: len(files) // 4])
    private = [index for index, owner in enumerate(owners) if owner not in tested]
    nn.init.normal_(model.network.classifier.weight, std=0.02)
    nn.init.zeros_(model.network.classifier.bias)
    return Task(
        model,
        Owned([rows[index] for index in private], [owners[index] for index in private]),
        default_collate([rows[index] for index, owner in enumerate(owners) if owner in tested]),
        lambda test: test,
        lambda test: test["labels"],
        {"peft_type": "LORA", "r": 8, "use_rslora": True, "target_modules": ["query", "key", "value", "dense"]},
        5,
        32,
    )


TASKS = {"digits": make_digits, "text": make_text}


def measure(task: Task, seed: int, ways: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Train and forget; return the accuracies by way and number of requests, and seconds and bytes."""
    people = task.people(seed)
    people = people[: len(people) * 9 // 10]
    after = measured_after(len(people))
    found: dict[str, Any] = {"people": len(people), "after": after, "accuracies": {}, "seconds": {}, "bytes": {}}
    with tempfile.TemporaryDirectory() as folder:
        stores = {way: Path(folder) / way for way in ways}
        for way in ways:
            say(f"{way}: training")
            origin, arguments = WAYS[way]
            if origin is not None:
                shutil.copytree(stores[origin], stores[way])
            if arguments is None:
                with Store.open(stores[way]) as store, store.building() as building:
                    building.drop(store.alive())
            else:
                start = time.perf_counter()
                train(task, seed, stores[way], arguments)
                found["seconds"][way] = time.perf_counter() - start
                found["bytes"][way] = sum(file.stat().st_size for file in stores[way].rglob("*") if file.is_file())
        for way in ways:
            say(f"{way}: forgetting")
            found["accuracies"][way] = forget_all(task, stores[way], people, after)
        found["fine-tunes"] = {}
        for number in (0, len(people) // 2, len(people)):
            say(f"fine-tune without {number}: training")
            store = Path(folder) / f"fine-tune-{number}"
            found["fine-tunes"][str(number)] = fine_tune(task, seed, store, set(people[:number]))
    return found


def train(task: Task, seed: int, store: Path, arguments: dict[str, Any]) -> None:
    """Train S3T with these arguments, into this store."""
    shape = {"shards": SHARDS, "slices": SLICES, "budget": BUDGET, **arguments}
    s3t = S3T(store, subjects="owners", adapter=task.adapter, partition="public", seed=seed, **shape)
    make_trainer(task.epochs, s3t).fit(task.model, DataLoader(task.private, task.batch, shuffle=True))


def measured_after(people: int) -> list[int]:
    """Return after how many requests accuracy is measured: each of the first 20, then every fifth, from 100 every tenth.

    Seeds of text have different numbers of people, and are compared at the numbers that all of them have.
    """
    return sorted(
        {number for number in {*range(21), *range(20, 100, 5), *range(100, people, 10)} if number < people} | {people}
    )


def forget_all(task: Task, store: Path, people: Sequence[str], after: Sequence[int]) -> list[float]:
    """Return the accuracy after each of these numbers of requests; NaN where nothing answers."""
    found = list[float]()
    with EnsembleModule.from_store(store, task.model) as served:
        for before, number in zip([0, *after], after, strict=False):
            for person in people[before:number]:
                served.forget([person])
            found.append(task.accuracy(served))
    return found


def fine_tune(task: Task, seed: int, store: Path, gone: set[str]) -> float:
    """Return the accuracy of one shard of one slice, which trains the adapters of all layers on all other rows."""
    kept = [row for row, owner in enumerate(task.private.owners) if owner not in gone]
    private = Owned([task.private.rows[row] for row in kept], [task.private.owners[row] for row in kept])
    s3t = S3T(
        store, 1, 1, subjects="owners", budget=1, seed=seed, adapter=task.adapter, partition="public"
    )  # as many epochs as a sequence of four slices has in all
    make_trainer(task.epochs * SLICES, s3t).fit(
        copy.deepcopy(task.model), DataLoader(private, task.batch, shuffle=True)
    )
    with EnsembleModule.from_store(store, task.model) as served:
        return task.accuracy(served)


def ways_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the variants that all these seeds have."""
    return [way for way in WAYS if all(way in one["accuracies"] for one in results)]


def mean_at(results: Sequence[dict[str, Any]], way: str) -> dict[int, float]:
    """Return the mean over the seeds by number of requests; NaN where nothing answers for one of them."""
    found = [dict(zip(one["after"], one["accuracies"][way], strict=True)) for one in results]
    shared = [number for number in found[0] if all(number in one for one in found)]
    return {number: statistics.fmean(one[number] for one in found) for number in shared}


def mean_fine_tunes(results: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Return the mean accuracy of the fine-tunes, by the mean number of requests: none, half of them, all."""
    columns = zip(*(one["fine-tunes"].items() for one in results), strict=True)
    return {
        round(statistics.fmean(int(number) for number, _ in column)): statistics.fmean(value for _, value in column)
        for column in columns
    }


def judge(name: str, results: Sequence[dict[str, Any]], console: Console) -> bool:
    """Print a task's table; return whether its marks are met."""
    means = {way: mean_at(results, way) for way in ways_of(results)}
    numbers = list(means["S3T"])
    table = Table("requests", *means, title=f"{name}: test accuracy, %, mean of {len(results)} seeds")
    wanted = (0, 1, 2, 5, 10, 20, 40, 60, 80, *(numbers[-1] * part / 4 for part in (2, 3, 4)))
    for number in sorted({min(numbers, key=lambda number: abs(number - one)) for one in wanted}):
        shown = [f"{100 * means[way][number]:.1f}" for way in means]
        table.add_row(str(number), *[NOTHING if text == "nan" else text for text in shown])
    console.print(table)
    alone = means["floor alone"]
    behind = max(alone[number] - value for number, value in means["with layers"].items())
    tuned = mean_fine_tunes(results)
    taken = tuned[0] - means["S3T"][0]
    given = {way: (means[way][0] - means["S3T"][0]) / taken for way in means if way.startswith("with ")}
    left = ", ".join(f"{100 * accuracy:.1f} % after {number}" for number, accuracy in tuned.items())
    console.print(f"Fine-tunes on the rows that are left: {left} requests. Sharding takes {100 * taken:.1f}.")
    console.print("Given back: " + ", ".join(f"{share:.2f} {way}" for way, share in given.items()) + " (mark: 0.4).")
    console.print(
        f"With the floor on four layers, at worst {100 * behind:.1f} points behind the floor by itself (mark: 0.5)."
    )
    for what, of in (("seconds", "seconds of the fit"), ("bytes", "bytes of the store")):
        each = {way: statistics.fmean(one[what][way] for one in results) for way in means if way in results[0][what]}
        console.print(f"{of}: " + ", ".join(f"{way} {mean:,.0f}" for way, mean in each.items()))
    return behind <= MARKS[0] and given["with layers"] >= MARKS[1]


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw accuracy over requests, a panel for each task."""
    figure = Figure(figsize=(6 * len(found), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, results) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for way, colour in zip(WAYS, COLOURS, strict=True):
            if way in ways_of(results):
                means = mean_at(results, way)
                shown = [100 * value for value in means.values()]
                axes.plot(list(means), shown, color=colour, label=way, drawstyle="steps-post")
        tuned = mean_fine_tunes(results)
        axes.plot(
            list(tuned),
            [100 * value for value in tuned.values()],
            color="#495057",
            linestyle=":",
            marker="o",
            label="fine-tune on the rows left",
        )
        axes.set(title=name, xlabel="deletion requests, no fit in between", ylabel="test accuracy, %")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=130)


def compute_quietly() -> None:
    """Use one thread, and silence the trainers."""
    torch.set_num_threads(1)
    for logger in (
        "lightning.pytorch",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
    ):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def main(arguments: list[str]) -> int:
    """Measures, prints, draws, and returns 1 if a mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", default=[], choices=[*TASKS, []], metavar="TASK", help="all, if none is named"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), metavar="SEED")
    parser.add_argument(
        "--without", nargs="+", default=[], choices=[way for way in WAYS if way not in MARKED], metavar="VARIANT",
        help="do not train these: with floor, with heads, finer slices, SISA",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("build/accuracy"))
    options = parser.parse_args(arguments)
    console = Console()
    compute_quietly()
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.tasks or TASKS:
        for seed in options.seeds:
            file = options.output / f"{name}-{seed}.json"
            if not file.exists():
                with console.status(name) as status:
                    title = f"{name}, seed {seed}: "
                    result = measure(
                        TASKS[name](seed), seed, [way for way in WAYS if way not in options.without],
                        lambda what, title=title, status=status: status.update(title + what),
                    )  # fmt: skip
                file.write_text(json.dumps(result))
            found.setdefault(name, []).append(json.loads(file.read_text()))
    met = [judge(name, results, console) for name, results in found.items()]
    draw(found, options.output / "accuracy.png")
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
