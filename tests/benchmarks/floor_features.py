"""What the floor should read: `python -m tests.benchmarks.floor_features [--seeds N] [TASK ...]`.

The test accuracy of the closed-form head alone, from all rows of the tasks of `tests.benchmarks.accuracy`: on the input of
the network's head; on that and the pooled outputs of the upper layers, projected to several widths; and on 1,024 random
features of the head's input (a Gaussian projection and a rectifier, as RanPAC has, arXiv 2307.02251, section 4). And, on
the same rounded features, that of two other heads: class means, and logistic regressions with several penalties.
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
from torch.nn import functional
from torch.utils.data import default_collate

from lightning_s3t import Floor
from lightning_s3t.core.floor import CLIP, FloorPart
from lightning_s3t.store.heads.feature_sums import FeatureRows, FeatureSums
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
OTHER_HEADS = ("the head's input", "4 layers, width 1024")
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)


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


def class_means(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, part: FloorPart) -> float:
    """Return the test accuracy of the nearest mean of a class."""
    rows = round_features(train, part.limit).double()
    means = torch.stack([rows[labels == label].mean(0) for label in range(part.outputs)])
    distances = torch.cdist(round_features(test, part.limit).double(), means)
    return float((distances.argmin(-1) == wanted).float().mean())


def logistic(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, part: FloorPart, penalty: float) -> float:
    """Return the test accuracy of a logistic regression (softmax), with a penalty per row on its squared weights."""
    scale = CLIP / part.limit / train.shape[1] ** 0.5  # rows of a norm of about 1
    rows, tested = (round_features(features, part.limit).double() * scale for features in (train, test))
    weight = torch.zeros(part.outputs, rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(part.outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(rows @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss)

    optimizer.step(closure)
    return float(((tested @ weight.T + bias).argmax(-1) == wanted).float().mean())


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
        if name in OTHER_HEADS:
            found[f"{name}: class means"] = class_means(train, labels, test, wanted, part)
            for penalty in PENALTIES:
                title = f"{name}: logistic regression, penalty {penalty:g}"
                found[title] = logistic(train, labels, test, wanted, part, penalty)
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
