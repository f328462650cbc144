"""The demo's output in the terminal."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lightning_s3t import EnsembleModule, describe_layers
from lightning_s3t.plan import deletion_rate
from lightning_s3t.zoo.demo.digits import Digits, accuracy
from lightning_s3t.zoo.demo.guarantees import Check, Comparison, check_guarantees
from lightning_s3t.zoo.demo.picture import draw
from lightning_s3t.zoo.demo.training import (
    ADAPTER,
    DemoSettings,
    fine_tune_fully,
    train_by_slices,
    train_publicly,
)
from lightning_s3t.zoo.demo.trajectory import Trajectory, forget_on_and_on

PICTURE = "forgetting.png"


@dataclass(frozen=True)
class DemoResult:
    """The measurements of the demo.

    Attributes:
        public: Accuracy of the public model under the head that it was trained with.
        untuned: Accuracy of the public backbone under a new head, from which S3T and the full fine-tune start.
        full: Accuracy of the full fine-tune.
        s3t: Accuracy of the S3T ensemble before any request.
        trajectories: The effect of the requests, by method.
        checks: The three guarantees.
        picture: The picture's file.
    """

    public: float
    untuned: float
    full: float
    s3t: float
    trajectories: dict[str, Trajectory]
    checks: list[Check]
    picture: Path


def run_demo(output: Path, settings: DemoSettings, console: Console | None = None) -> DemoResult:
    """Tells the story: trains, forgets nine people of ten, checks the guarantees, draws.

    Args:
        output: The folder for the picture.
        settings: Sizes and seed.
        console: The console to print to.
    """
    console = console or Console()
    output.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="s3t-demo-"))
    began = time.perf_counter()
    try:
        with _quiet():
            result = _tell(output, scratch, settings, console)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    console.print(f"\nDone in {time.perf_counter() - began:.0f} s. Picture: [bold]{result.picture}[/]")
    return result


def _tell(output: Path, scratch: Path, settings: DemoSettings, console: Console) -> DemoResult:
    console.rule("1  The data, and a publicly trained model")
    digits = Digits.load(settings.people, settings.seed)
    people = sorted(set(digits.private.owners))
    console.print(
        f"Handwritten digits: {len(digits.public)} public rows, {len(digits.private)} private ones that belong to "
        f"{len(people)} people, {len(digits.test)} to test on."
    )
    with console.status("Training a small vision transformer on the public rows"):
        model = train_publicly(digits.public, settings)
    public = accuracy(model, digits.test)
    model.network.reset_classifier(10)  # a new head, as for a downloaded backbone with a new task
    untuned = accuracy(model, digits.test)
    with console.status("Full fine-tune on all private rows, for comparison"):
        full, full_seconds = fine_tune_fully(model, digits.private, settings)
    tuned = accuracy(full, digits.test)

    console.rule("2  One callback trains by slices")
    console.print(
        f"S3T(store, shards={settings.shards}, slices={settings.slices}, budget={settings.budget}, subjects='owners', "
        "floor=True)"
    )
    console.print(str(describe_layers(model, settings.slices, adapter=ADAPTER)), markup=False, highlight=False)
    seconds = train_by_slices(model, digits.private, scratch / "s3t", settings, progress=True, floor=True)
    with console.status("SISA: the same with one sequence of the slices"):
        sisa_seconds = train_by_slices(model, digits.private, scratch / "sisa", settings, "sisa", budget=1)
    s3t = accuracy(EnsembleModule.from_store(scratch / "s3t", model), digits.test)
    table = Table("model", "test accuracy", "trained in", "can forget")
    table.add_row("public model, as it was trained", f"{public:.1%}", "", "nothing to forget")
    table.add_row("public backbone, new head, not tuned", f"{untuned:.1%}", "", "nothing to forget")
    table.add_row("full fine-tune, every parameter", f"{tuned:.1%}", f"{full_seconds:.0f} s", "by retraining")
    table.add_row("S3T ensemble, with its floor", f"{s3t:.1%}", f"{seconds:.0f} s", "in milliseconds")
    console.print(table)

    console.rule("3  One call forgets")
    random.Random(settings.seed).shuffle(people)
    people = people[: len(people) * 9 // 10]
    trajectories = {
        name: _forget(name, scratch / name.lower(), model, people, digits, console) for name in ("S3T", "SISA")
    }
    latency = median(trajectories["S3T"].latencies)
    shard_seconds = sisa_seconds / settings.shards
    console.print(
        f"A forget took {1000 * latency:.0f} ms (median); to retrain a shard on one sequence takes {shard_seconds:.1f} "
        f"s, {shard_seconds / latency:,.0f} times as long."
    )
    expected = {
        "S3T": deletion_rate(settings.shards, settings.slices, min(settings.budget, settings.slices)),
        "SISA": deletion_rate(settings.shards, settings.slices, 1),
    }
    for name, trajectory in trajectories.items():
        after = f"after {trajectory.units_gone_after} requests ({expected[name]:.0f} expected) no unit was left"
        if trajectory.dark_after is None:
            console.print(
                f"{name}: {after}, and the floor answers on: {trajectory.accuracies[-1]:.1%} when "
                f"{trajectory.requests} of {len(set(digits.private.owners))} people are forgotten."
            )
        else:
            console.print(f"{name}: {after}, and nothing answers until the next fit.")

    console.rule("4  The three guarantees, checked live")
    with console.status("Training small stores with, without and with noise for a person"):
        checks = check_guarantees(model, Comparison.of(digits.private), scratch / "checks", settings)
    table = Table("guarantee", "compared, bit by bit", "holds")
    for check in checks:
        table.add_row(check.name, check.compared, "[green]yes[/]" if check.holds else "[red]NO[/]")
    console.print(table)
    picture = output / PICTURE
    draw(trajectories, {"full fine-tune": tuned, "head not tuned": untuned}, picture)
    return DemoResult(public, untuned, tuned, s3t, trajectories, checks, picture)


def _forget(
    name: str, store: Path, model: pl.LightningModule, people: list[str], digits: Digits, console: Console
) -> Trajectory:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{name}: forgetting", total=None)

        def tell(number: int, trajectory: Trajectory) -> None:
            progress.update(
                task,
                description=f"{name}: request {number}, accuracy {trajectory.accuracies[-1]:.1%}, "
                f"{trajectory.units[-1]} units",
            )

        trajectory = forget_on_and_on(store, model, people, digits.test, tell)
    table = Table("request", "accuracy", "units alive", "slices in use", title=f"{name}, one request after the other")
    last = trajectory.requests
    for request in sorted({0, 1, 2, 5, *range(0, last, 10), last}):
        if request <= last:
            table.add_row(
                str(request),
                f"{trajectory.accuracies[request]:.1%}",
                str(trajectory.units[request]),
                str(trajectory.depths[request]),
            )
    console.print(table)
    return trajectory


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's messages about each of the many trainers."""
    names = (
        "lightning.pytorch",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is so small that threads would only wait for each other
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
