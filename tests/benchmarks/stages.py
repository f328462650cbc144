"""A training step at each stage against one with every adapter trainable: `python -m tests.benchmarks.stages`.

A small ViT of six blocks in six groups. Stage 1 trains the top block, so the backward pass ends there; stage 6 the lowest.
The other contestant is the network of the last stage with all six groups' adapters trainable, as a fine-tune with PEFT has
them. Marks: no stage takes longer than that (within 1.05 times), and the first at most 0.6 times as long.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.freezing import set_trainable
from lightning_s3t.tuning.stage_switch import StageSwitch
from lightning_s3t.tuning.stages import StageBuilder, trainable_parameters
from tests.benchmarks.timing import ratio, take_turns
from tests.benchmarks.vision import DEVICE, Classifier, random_images

SLICES, BATCH, SIZE, ROUNDS = 6, 16, 96, 15
ADAPTER = {"peft_type": "LORA", "r": 16, "target_modules": ["qkv"]}
MARK_EVERY, MARK_FIRST = 1.05, 0.6


def make_module() -> Classifier:
    """A small vision transformer."""
    return Classifier("vit_small_patch16_224", img_size=SIZE, depth=SLICES).to(DEVICE)


def step_of(module: Classifier) -> Callable[[], None]:
    """Return a training step of what is trainable in a module."""
    images, labels = (tensor.to(DEVICE) for tensor in random_images(BATCH, SIZE).tensors)
    optimizer = module.configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        module.training_step((images, labels), 0).backward()
        optimizer.step()

    return step


def staged(stage: int) -> tuple[Classifier, StageBuilder]:
    """Return a module with the stand-ins of a stage in place, as the callback puts them."""
    module = make_module().train()
    switch = StageSwitch(module, SLICES, adapter=resolve_adapter(ADAPTER))
    builder = switch.builder
    trained: dict[int, dict[str, Tensor]] = {}
    for index in range(1, stage + 1):
        trained[index] = switch.enter(index, trained, seed=0).snapshot()
    return module, builder


def with_all() -> Callable[[], None]:
    """Return the step in which every group's adapters and the head are trained."""
    module, builder = staged(SLICES)
    names = {name for stage in range(1, SLICES + 1) for name in builder.owned(stage)}
    stand_ins = {name: module.get_submodule(name) for name in names}
    set_trainable(module, trainable_parameters(builder, stand_ins).values())
    return step_of(module)


def main() -> int:
    """Time all stages in turn; return 1 above a mark."""
    torch.set_num_threads(1)
    stages = {f"stage {stage}": step_of(staged(stage)[0]) for stage in range(1, SLICES + 1)}
    times = take_turns({**stages, "every adapter": with_all()}, ROUNDS, "steps")
    table = Table("", "a step, median", "against every adapter", title="A training step by stage")
    ratios = {name: ratio(times[name], times["every adapter"]) for name in stages}
    for name, seconds in times.items():
        table.add_row(name, f"{1000 * statistics.median(seconds):.0f} ms", str(ratios.get(name, "")))
    Console().print(table)
    medians = [found.median for found in ratios.values()]
    growing = sum(low < high for low, high in pairwise(medians))
    print(f"{growing} of {SLICES - 1} stages take longer than the one before.")
    print(
        f"The first: {medians[0]:.3f} (mark: {MARK_FIRST:g}); the longest: {max(medians):.3f} (mark: {MARK_EVERY:g})."
    )
    return int(medians[0] > MARK_FIRST or max(medians) > MARK_EVERY)


if __name__ == "__main__":
    sys.exit(main())
