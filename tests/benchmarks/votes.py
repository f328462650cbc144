"""What shards should weigh next to a floor: `python -m tests.benchmarks.votes [TASK ...] [--seeds SEED ...]`.

The tasks are those of `tests.benchmarks.accuracy`, with a floor on four layers. Each answer is the mean of the logits of the
shards and the floor, by their votes: today a vote for each slice that a shard serves, and for the floor `factor` times the
votes of all complete shards, which is 4. Here the votes are also multiplied by a power of each model's skill: 1 minus the
squared error of its probabilities on the *test* rows, over that of the class frequencies. So this says what weights by
skill would be worth, if the skill could be had without test rows. It has no mark.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_s3t import EnsembleModule
from lightning_s3t.serving.predictor import EnsemblePredictor
from lightning_s3t.serving.served_shards import FLOOR
from tests.benchmarks.accuracy import SHARDS, SLICES, TASKS, WAYS, compute_quietly, train

AFTER = (0, 1, 2, 3, 5, 8, 10, 13, 16, 20, 30, 40)
RULES = [(1, 0), (2, 0), (4, 0), (8, 0), (1, 1), (2, 1), (1, 2), (2, 2), (1, 3)]


def answers_of(task: str, seed: int) -> tuple[Tensor, dict[int, dict[int, tuple[Tensor, int]]]]:
    """Return the test labels, and by number of requests and shard the logits and the number of slices that serve."""
    made = TASKS[task](seed)
    people = made.people(seed)
    found: dict[int, dict[int, tuple[Tensor, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        train(made, seed, Path(folder), WAYS["with layers"][1] or {})
        with EnsembleModule.from_store(folder, made.model) as served:
            seen: list[list[Any]] = []
            _note_answers(served, seen)
            for before, number in zip((0, *AFTER), AFTER, strict=False):
                for person in people[before:number]:
                    served.forget([person])
                made.accuracy(served)
                shards = served.keys_in_use()
                stages = {shard: unit.stage for shard, unit in served.survivors.items()}
                found[number] = {
                    shard: (logits, stages.get(shard, 0)) for shard, logits in zip(shards, seen[-1], strict=True)
                }
    return made.labels(made.test), found


def _note_answers(served: EnsemblePredictor, seen: list[list[Any]]) -> None:
    """Note what each shard answers: serving itself gives the mean only."""
    combine = type(served)._aggregated

    def note(outputs: list[Any], keys: Any) -> Any:
        seen.append([output if isinstance(output, Tensor) else output["logits"] for output in outputs])
        return combine(served, outputs, keys)

    served._aggregated = note  # type: ignore[method-assign]


def accuracy(labels: Tensor, shards: dict[int, tuple[Tensor, int]], factor: float, power: int) -> float:
    """Return the accuracy under a rule for the votes, in %; of the floor alone, if the factor is infinite."""
    if factor == float("inf"):
        return 100 * float((shards[FLOOR][0].argmax(-1) == labels).float().mean())
    targets = one_hot(labels, shards[FLOOR][0].shape[-1]).float()
    chance = (targets - targets.mean(0)).square().sum(1).mean()
    total = torch.zeros_like(targets)
    for shard, (logits, stage) in shards.items():
        error = (logits.float().softmax(-1) - targets).square().sum(1).mean()
        votes = factor * SHARDS * SLICES if shard == FLOOR else stage
        total += votes * max(0.0, float(1 - error / chance)) ** power * logits
    return 100 * float((total.argmax(-1) == labels).float().mean())


def main(arguments: list[str]) -> int:
    """Trains, prints, and returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", default=[], choices=[*TASKS, []], metavar="TASK", help="all, if none is named"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), metavar="SEED")
    options = parser.parse_args(arguments)
    console = Console()
    compute_quietly()
    for task in options.tasks or TASKS:
        found = []
        with console.status(task) as status:
            for seed in options.seeds:
                status.update(f"{task}, seed {seed}")
                found.append(answers_of(task, seed))
        table = Table(
            "factor", "power of the skill", "before any request, %", "behind the floor at worst", "on average"
        )
        for factor, power in RULES:
            behind, first = [], [accuracy(labels, states[0], factor, power) for labels, states in found]
            for number in AFTER:
                each = [
                    accuracy(labels, states[number], float("inf"), 0) - accuracy(labels, states[number], factor, power)
                    for labels, states in found
                ]
                behind.append(statistics.fmean(each))
            table.add_row(
                str(factor), str(power), f"{statistics.fmean(first):.1f}", f"{max(behind):.2f}",
                f"{statistics.fmean(behind):.2f}",
            )  # fmt: skip
        table.title = f"{task}, {len(found)} seeds"
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
