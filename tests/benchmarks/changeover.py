"""The change-over between two units in one process against a training step: `python -m tests.benchmarks.changeover [--large]`.

With `isolation="none"`, the change-over is all that happens between the last batch of one unit and the first of the next:
the guard's comparison, the snapshot and its commit, setting everything back, Lightning's own end and start of a fit loop,
and the first batch's loading. Units of one and of three epochs take turns; a ViT-base with LoRA of rank 16 on query, key and
value. With `--large` batches of 32 (ten minutes); without, of 2, which is harder to pass: a step is shorter then, a
change-over is not. Marks: 3 steps, and as long a guard after three epochs as after one (within 1.5 times).
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader

from lightning_s3t import S3T
from lightning_s3t.engine.lightning_internals import TrainerReset
from lightning_s3t.executors import in_process
from lightning_s3t.store import Attempt, BuildSession, Store
from lightning_s3t.tuning.stage_switch import StageSwitch, StageWatch
from lightning_s3t.tuning.stages import Stage
from tests.benchmarks.timing import Ratio
from tests.benchmarks.vision import Classifier, RepeatedImages, make_trainer

SHARDS, SLICES, STEPS = 2, 2, 2
EPOCHS = (1, 3)
ADAPTER = {"peft_type": "LORA", "r": 16, "target_modules": ["qkv"]}
MARK_STEPS, MARK_EPOCHS = 3.0, 1.5
PARTS: dict[str, tuple[tuple[type | ModuleType, str], ...]] = {
    "guard": ((StageSwitch, "watch"), (StageWatch, "check")),
    "snapshot and commit": ((Stage, "snapshot"), (Attempt, "commit"), (BuildSession, "start_unit"), (Store, "load")),
    "set back": ((TrainerReset, "restore"), (in_process, "prepare_fit_loop"), (StageSwitch, "enter")),
}


@dataclass(frozen=True)
class Measured:
    """One change-over: its seconds, those of its parts, and a step's of the unit before it."""

    total: float
    parts: dict[str, float]
    step: float

    @property
    def steps(self) -> float:
        """How many steps it takes."""
        return self.total / self.step


class Record:
    """What the clock has seen. Between units everything is set back, this not: it is its own copy."""

    def __init__(self) -> None:
        self.found: list[Measured] = []
        self.steps: list[float] = []
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.inside = False
        self.began = self.ended = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self


class Clock(pl.Callback):
    """Times steps and change-overs."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Called before each batch."""
        record, now = self._record, time.perf_counter()
        if trainer.global_step == 0:
            if record.steps:
                # the first step warms things up
                step = statistics.median(record.steps[1:])
                record.found.append(Measured(now - record.ended, record.parts, step))
            record.steps = []
        record.began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Called after each batch."""
        if torch.cuda.is_available():  # the step may not be done yet
            torch.cuda.synchronize()
        record = self._record
        record.ended = time.perf_counter()
        record.steps.append(record.ended - record.began)
        record.parts = dict.fromkeys(PARTS, 0.0)


@contextmanager
def timed_parts(record: Record) -> Iterator[None]:
    """Add up what the parts of a change-over take, within the block."""

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if record.inside:
                return method(*args, **kwargs)
            record.inside, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                record.inside = False
                record.parts[part] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for part, methods in PARTS.items():
            for owner, name in methods:
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        yield


def fit(folder: Path, epochs: int, batch: int) -> list[Measured]:
    """Train all units of a new store; return their change-overs."""
    record = Record()
    rows = 3 * SHARDS * SLICES * STEPS * batch
    s3t = S3T(folder, shards=SHARDS, slices=SLICES, budget=1, subjects="index", adapter=ADAPTER, isolation="none")
    trainer = make_trainer(folder.parent, s3t, Clock(record), max_epochs=epochs, limit_train_batches=STEPS)
    loader = DataLoader(RepeatedImages(rows, 224), batch, shuffle=True, drop_last=True)
    with timed_parts(record):
        trainer.fit(Classifier("vit_base_patch16_224"), loader)
    return record.found


def show(found: dict[int, list[Measured]], batch: int) -> Table:
    """Return the table."""
    table = Table(title=f"The change-over between units of a ViT-base, batches of {batch}")
    for heading in ("epochs a unit", "a step", "a change-over", "in steps", *PARTS, "Lightning and the rest"):
        table.add_column(heading, justify="right")
    for epochs, measured in found.items():
        parts = [statistics.median(m.parts[part] for m in measured) for part in PARTS]
        rest = statistics.median(m.total - sum(m.parts.values()) for m in measured)
        steps = [m.steps for m in measured]
        table.add_row(
            str(epochs),
            f"{1000 * statistics.median(m.step for m in measured):,.0f} ms",
            f"{1000 * statistics.median(m.total for m in measured):,.0f} ms",
            str(Ratio(statistics.median(steps), min(steps), max(steps))),
            *(f"{1000 * seconds:,.0f} ms" for seconds in (*parts, rest)),
        )
    return table


def main(arguments: list[str]) -> int:
    """Time both lengths in turn; return 1 above a mark."""
    torch.set_num_threads(1)
    batch, rounds = (32, 1) if "--large" in arguments else (2, 2)
    found: dict[int, list[Measured]] = {epochs: [] for epochs in EPOCHS}
    with tempfile.TemporaryDirectory() as name:
        for number in track(range(rounds), "training units", console=Console(stderr=True), transient=True):
            for epochs in EPOCHS:
                found[epochs] += fit(Path(name) / f"{number}-{epochs}", epochs, batch)
    Console(width=150).print(show(found, batch))
    worst = max(statistics.median(m.steps for m in measured) for measured in found.values())
    guard = [statistics.median(m.parts["guard"] for m in found[epochs]) for epochs in EPOCHS]
    print(f"A change-over takes {worst:.2f} steps (mark: {MARK_STEPS:g}).")
    print(f"The guard after {EPOCHS[1]} epochs against one: {guard[1] / guard[0]:.2f} (mark: {MARK_EPOCHS:g}).")
    return int(worst > MARK_STEPS or guard[1] / guard[0] > MARK_EPOCHS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
