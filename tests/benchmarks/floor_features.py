"""What the floor should read: `python -m tests.benchmarks.floor_features [--seeds N] [TASK ...]`.

The test accuracy of the closed-form head alone, from all rows of the tasks of `tests.benchmarks.accuracy`: on the input of
the network's head; on that and the pooled outputs of the upper layers, projected to several widths; and on 1,024 random
features of the head's input (a Gaussian projection and a rectifier, as RanPAC has, arXiv 2307.02251, section 4).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import default_collate

from lightning_s3t import Floor
from lightning_s3t.core.floor import FloorPart
from lightning_s3t.store.feature_sums import FeatureRows, FeatureSums
from lightning_s3t.tuning import find_layers
from lightning_s3t.tuning.head_features import HeadFeatures
from lightning_s3t.tuning.ridge import normalise, round_features, solve_head
from tests.benchmarks.accuracy import TASKS, Task, compute_quietly

RANDOM = 1024
FLOORS = {
    "the head's input": Floor(),
    "the head's input, 6 bits": Floor(bits=6),
    **{
        f"{layers} layers, width {width}": Floor(layers=layers, width=width)
        for layers, width in ((1, 128), (2, 128), (4, 64), (4, 128), (4, 256), (4, 1024))
    },
    "4 layers, width 256, 6 bits": Floor(layers=4, width=256, bits=6),
}


def random_features(width: int) -> Callable[[Tensor], Tensor]:
    """Return a function that gives random features of a head's input."""
    projection = torch.randn(width, RANDOM, generator=torch.Generator().manual_seed(0))
    return lambda inputs: (normalise(inputs) @ projection).relu()


def read(task: Task, part: FloorPart, network: str, batch: Any) -> Tensor:
    """Return the features of a batch."""
    features, found = HeadFeatures(task.model, network, part), list[Tensor]()
    layer = task.model.get_submodule(part.layer)
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(features.of(args[0])))
    features.attach()
    with torch.no_grad():
        task.model.eval()(task.inputs(batch))
    features.detach()
    handle.remove()
    return found[0]


def accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, part: FloorPart) -> float:
    """Return the test accuracy of the closed-form head that is solved from rows."""
    part = part.model_copy(update={"width": train.shape[1]})
    sums = FeatureSums(part, "multiclass")
    sums.add(FeatureRows(round_features(train, part.limit), labels.int()))
    return float((solve_head(sums)(test).argmax(-1) == wanted).float().mean())


def measure(task: Task) -> dict[str, float]:
    """Return the accuracies by what the floor reads."""
    layers = find_layers(task.model, slices=4)
    rows = default_collate(task.private.rows)
    labels, wanted = task.labels(rows), task.labels(task.test)
    found = {}
    for name, floor in FLOORS.items():
        part = floor.part(task.model, layers)
        train, test = read(task, part, layers.network, rows), read(task, part, layers.network, task.test)
        found[name] = accuracy(train, labels, test, wanted, part)
    part = Floor().part(task.model, layers)
    expand = random_features(part.width)
    train, test = (expand(read(task, part, layers.network, batch)) for batch in (rows, task.test))
    return {**found, f"{RANDOM:,} random features of the head's input": accuracy(train, labels, test, wanted, part)}


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", default=[], choices=[*TASKS, []], metavar="TASK", help="all, if none is named"
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    options.tasks = options.tasks or list(TASKS)
    compute_quietly()
    console = Console()
    with console.status("training on public rows"):
        found = {name: [measure(TASKS[name](seed)) for seed in range(options.seeds)] for name in options.tasks}
    table = Table(
        "the floor reads", *options.tasks, title=f"test accuracy of the floor alone, %, {options.seeds} seeds"
    )
    for name in found[options.tasks[0]][0]:
        table.add_row(
            name, *[f"{100 * statistics.fmean(one[name] for one in found[task]):.1f}" for task in options.tasks]
        )
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
