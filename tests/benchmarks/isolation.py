"""Units in processes of their own against plain training: `python -m tests.benchmarks.isolation [--quick] [PART ...]`.

Four parts, none with any MALLOC_* in the environment:

- `fits`: whole fits of 16 units of about five seconds, against Lightning's own `trainer.fit` of the same stages and steps in
  the script's process, and against `isolation="none"`; also in seconds of the CPU, of all processes. Mark: 1.05 times
  Lightning alone.
- `units`: what a unit costs beside its training, with a small model, for each isolation: seconds of a fit of many units beyond those
  of one of few, a unit, less its steps. Mark: 0.3 seconds.
- `start`: the first start of the process that imports the packages.
- `memory`: the proportional set size (PSS) of the script's process and all below it, at its peak, for a model of 200 MB that
  learns from 200 MB; against a fine-tune with PEFT beside one process with the imports alone. Wanted: 1.1 times.

With `--quick` there are fewer steps and rounds, which shows that it runs, and no more.
"""

from __future__ import annotations

import copy
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import peft
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_s3t import S3T
from lightning_s3t.executors.processes import forkserver
from lightning_s3t.executors.processes.packing import pack
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.stage_switch import StageSwitch
from tests import people
from tests.benchmarks.timing import ratio, take_turns
from tests.benchmarks.training import ADAPTER, BATCH, SIZE, make_module
from tests.benchmarks.vision import CLASSES, Classifier, RepeatedImages, make_trainer

Kind = Literal["forkserver", "fork", "none"]

SHARDS, SLICES, STEPS, ROUNDS = 8, 2, 75, 2
FEW, MANY, SMALL_STEPS, SMALL_ROUNDS = 2, 10, 5, 3
# of 1.6 MB each, shown to the network at this size
ROWS, ROW_SIZE, SHOWN_SIZE, MEMORY_BATCH = 128, 368, 32, 8
MARK_FIT, MARK_UNIT, WANTED_MEMORY = 1.05, 0.3, 1.1
IMPORTS = (
    "import lightning_s3t.executors.processes.unit_process, lightning_s3t.callbacks.s3t; print(flush=True); input()"
)


def fit_units(folder: Path, isolation: Kind, steps: int) -> None:
    """Train all units of a new store."""
    s3t = S3T(folder, SHARDS, SLICES, budget=1, subjects="index", adapter=ADAPTER, isolation=isolation)
    make_trainer(folder.parent, s3t, limit_train_batches=steps).fit(make_module(), images(steps))


def fit_by_lightning(folder: Path, steps: int) -> None:
    """Train the same stages as often, by trainers without the callback."""
    module = make_module()
    for _ in range(SHARDS):
        trained: dict[int, dict[str, Tensor]] = {}
        for stage in range(1, SLICES + 1):
            staged = copy.deepcopy(module)
            entered = StageSwitch(staged, SLICES, adapter=resolve_adapter(ADAPTER)).enter(stage, trained, seed=0)
            make_trainer(folder, limit_train_batches=steps).fit(staged, images(steps))
            trained[stage] = entered.snapshot()


def images(steps: int) -> DataLoader[tuple[Tensor, int]]:
    """So many rows that the smallest slice, too, has the steps."""
    return DataLoader(RepeatedImages(2 * SHARDS * SLICES * steps * BATCH, SIZE), BATCH, shuffle=True, drop_last=True)


def compare_fits(steps: int, rounds: int) -> float:
    """Time whole fits in turn; return the ratio of the default to Lightning alone."""
    with tempfile.TemporaryDirectory() as name:
        folder, stores = Path(name), iter(range(1000))
        contestants: dict[str, Callable[[int], None]] = {
            'S3T(isolation="forkserver")': lambda steps: fit_units(folder / str(next(stores)), "forkserver", steps),
            'S3T(isolation="none")': lambda steps: fit_units(folder / str(next(stores)), "none", steps),
            "Lightning alone": lambda steps: fit_by_lightning(folder, steps),
        }
        for run in contestants.values():
            run(2)
        cpu: dict[str, list[float]] = {name: [] for name in contestants}

        def run_one(name: str) -> None:
            before = cpu_seconds(os.getpid())
            contestants[name](steps)
            cpu[name].append(cpu_seconds(os.getpid()) - before)

        turns = {name: functools.partial(run_one, name) for name in contestants}
        times = take_turns(turns, rounds, "whole fits", warm_up=False, prepare=start)
    units = SHARDS * SLICES
    table = Table(
        "", "a unit", "against Lightning", "a unit, CPU", "against Lightning", title=f"{units} units, seconds"
    )
    for name in contestants:
        row = [name]
        for found in (times, cpu):
            row += [f"{statistics.median(found[name]) / units:.2f}", str(ratio(found[name], found["Lightning alone"]))]
        table.add_row(*row)
    Console(width=120).print(table)
    alone = times["Lightning alone"]
    found = ratio(times['S3T(isolation="forkserver")'], alone)
    print(f"A fit with processes of their own against Lightning alone: {found} (mark: {MARK_FIT:g}).")
    return found.median


class Timer(pl.Callback):
    """Times the steps of units that are trained in this process, without the start of a fit and its end."""

    found: list[float] = []  # noqa: RUF012 (of the class: between units, what is in the callback is set back)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called before the first batch."""
        self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called after the last."""
        Timer.found.append(time.perf_counter() - self.start)


def fit_small(folder: Path, isolation: Kind, units: int, *callbacks: pl.Callback) -> None:
    """Train so many units of a small network."""
    trainer = people.make_trainer(
        folder, *callbacks, epochs=1, shards=units, slices=1, budget=1, isolation=isolation,
        trainer={"limit_train_batches": SMALL_STEPS, "limit_val_batches": 0},
    )  # fmt: skip
    trainer.fit(people.Classifier(), datamodule=people.PeopleData(people.People.make(100 * MANY)))


def compare_units(rounds: int) -> float:
    """Time small units of each isolation; return what one of the default costs beside its training."""
    kinds: tuple[Kind, ...] = ("none", "fork", "forkserver")
    with tempfile.TemporaryDirectory() as name:
        folder, stores = Path(name), iter(range(1000))
        fit_small(folder / str(next(stores)), "none", MANY, Timer())
        step_seconds = statistics.median(Timer.found)
        contestants = {
            f"{kind}, {units}": lambda kind=kind, units=units: fit_small(folder / str(next(stores)), kind, units)
            for kind in kinds
            for units in (FEW, MANY)
        }
        times = take_turns(contestants, rounds, "small units")
    table = Table(
        "", "a fit", "a unit beside its steps", title=f"Seconds of small units; their steps: {step_seconds:.3f}"
    )
    costs = {}
    for kind in kinds:
        few, many = times[f"{kind}, {FEW}"], times[f"{kind}, {MANY}"]
        slopes = [(most - least) / (MANY - FEW) for least, most in zip(few, many, strict=True)]
        costs[kind] = statistics.median(slopes) - step_seconds
        least, most = min(slopes) - step_seconds, max(slopes) - step_seconds
        whole = statistics.median(few) - FEW * statistics.median(slopes)
        table.add_row(kind, f"{whole:.2f}", f"{costs[kind]:.3f} ({least:.3f} to {most:.3f})")
    Console(width=120).print(table)
    print(f"A unit costs {costs['forkserver']:.3f} s beside its training (mark: {MARK_UNIT:g}).")
    return costs["forkserver"]


class Nothing:
    """Takes the place of what trains units."""

    def prepare(self) -> None:
        pass


def start(cold: bool = False) -> None:
    """Start a fit's process, with or without the process that it is forked from."""
    if cold:
        forkserver._forget_base()
    package = pack((None, Nothing(), None), {})
    forkserver.ForkServer(package).close()
    package.close()


def time_start(rounds: int) -> float:
    """Print how long the process takes to be ready for units, the first time and later; there is no mark."""
    contestants = {"the first": lambda: start(cold=True), "later ones": lambda: start(cold=False)}
    times = take_turns(contestants, rounds, "starting")
    for name, seconds in times.items():
        print(f"Start of {name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}).")
    return 0.0


class LargeRows(Dataset[tuple[Tensor, int]]):
    """Large images in memory, all of whose pixels are read for the small ones that the network sees."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(ROWS, 3, ROW_SIZE, ROW_SIZE, generator=draw)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return nn.functional.adaptive_avg_pool2d(self.images[row], SHOWN_SIZE), row % CLASSES


def make_large(whole: bool) -> Classifier:
    """Seven of a ViT-base's blocks, 200 MB; with `whole`, PEFT puts an adapter on each at once."""
    module = Classifier("vit_base_patch16_224", img_size=SHOWN_SIZE, depth=7)
    if whole:
        config = peft.LoraConfig(r=8, target_modules=["qkv"], modules_to_save=["head"])
        module.network = peft.get_peft_model(module.network, config)  # type: ignore[arg-type]
    return module


def fit_large(isolation: Kind | None) -> None:
    """Train the large model: two units; or, for None, by PEFT, beside a process with the imports alone."""
    torch.set_num_threads(1)
    rows = DataLoader(LargeRows(), MEMORY_BATCH, shuffle=True)
    with tempfile.TemporaryDirectory() as name:
        if isolation is not None:
            s3t = S3T(
                Path(name) / "store",
                shards=1,
                slices=2,
                budget=1,
                subjects="index",
                adapter=ADAPTER,
                isolation=isolation,
            )
            make_trainer(Path(name), s3t).fit(make_large(whole=False), rows)
            return
        command = [sys.executable, "-c", IMPORTS]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as imports:
            assert imports.stdout is not None
            imports.stdout.readline()
            make_trainer(Path(name)).fit(make_large(whole=True), rows)
            imports.communicate(b"\n")


def processes_below(pid: int) -> Iterator[int]:
    """Return a process and all that it has started, at any remove."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    waiting = [pid]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += children.get(found, [])


def cpu_seconds(pid: int) -> float:
    """Return how long a process and all that it has started, those that have ended too, have computed."""
    total = 0
    for process in processes_below(pid):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # in user and system mode, its own and of children that have ended
    return total / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Pss:
    """The proportional set size of processes in MiB: all of it, what is shared memory of it, and each process's."""

    total: float = 0.0
    shared: float = 0.0
    each: tuple[float, ...] = ()

    @classmethod
    def below(cls, pid: int) -> Pss:
        """Read that of a process and all below it."""
        each, shared = [], 0.0
        for process in processes_below(pid):
            try:
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
            except OSError:  # it has ended
                continue
            sizes = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines}
            if sizes:
                each.append(sizes["Pss:"])
                shared += sizes["Pss_Shmem:"]
        return cls(sum(each), shared, tuple(each))


def peak_of(isolation: Kind | None) -> Pss:
    """Return the PSS of the processes of a fit when it was the most, in a script of its own."""
    code = f"from tests.benchmarks.isolation import fit_large; fit_large({isolation!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    peak = Pss()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, Pss.below(process.pid), key=lambda pss: pss.total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    failed = process.wait()
    done.set()
    watcher.join()
    assert not failed
    return peak


def compare_memory(rounds: int) -> float:
    """Measure peaks in turn, and print them; there is no mark."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("Memory: this system has no /proc/self/smaps_rollup.")
        return 0.0
    contestants: dict[str, Kind | None] = {
        "forkserver": "forkserver",
        "none": "none",
        "a fine-tune, and the imports": None,
    }
    found: dict[str, list[Pss]] = {name: [] for name in contestants}
    for _ in track(range(rounds), "memory", console=Console(stderr=True), transient=True):
        for name, isolation in contestants.items():
            found[name].append(peak_of(isolation))
    model = sum(tensor.nbytes for tensor in make_large(whole=False).state_dict().values()) / 2**20
    data = LargeRows().images.nbytes / 2**20
    table = Table(title=f"Peak of PSS in MiB: a model of {model:.0f}, data of {data:.0f}")
    for heading in ("", "median", "against the fine-tune", "shared memory of it", "each process, in one round"):
        table.add_column(heading)
    plain = [peak.total for peak in found["a fine-tune, and the imports"]]
    for name, peaks in found.items():
        totals = [peak.total for peak in peaks]
        each = ", ".join(f"{size:.0f}" for size in peaks[-1].each)
        median, shared = statistics.median(totals), statistics.median(peak.shared for peak in peaks)
        table.add_row(name, f"{median:,.0f}", str(ratio(totals, plain)), f"{shared:.0f}", each)
    Console(width=120).print(table)
    print(f"{WANTED_MEMORY:g} times was wanted of forkserver.")
    return 0.0


def main(arguments: list[str]) -> int:
    """Measure all; return 1 above a mark."""
    settings = {name for name in os.environ if name.startswith("MALLOC_")}
    if settings:  # glibc reads them when a process starts
        environment = {name: value for name, value in os.environ.items() if name not in settings}
        return subprocess.run([sys.executable, "-m", __spec__.name, *arguments], env=environment).returncode
    torch.set_num_threads(1)
    quick = "--quick" in arguments
    steps, rounds, small_rounds = (5, 1, 1) if quick else (STEPS, ROUNDS, SMALL_ROUNDS)
    parts: dict[str, Callable[[], float]] = {
        "units": lambda: compare_units(small_rounds) / MARK_UNIT,
        "start": lambda: time_start(small_rounds),
        "memory": lambda: compare_memory(rounds),
        "fits": lambda: compare_fits(steps, rounds) / MARK_FIT,
    }
    chosen = [name for name in parts if name in arguments] or list(parts)
    missed = [name for name in chosen if parts[name]() > 1]
    return int(not quick and bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
