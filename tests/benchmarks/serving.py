"""Serving: the ensemble against separate passes, and a swap after a request against loading a checkpoint.

`python -m tests.benchmarks.serving`. A ViT-base, five shards of six slices on three orders, LoRA of rank 16 on query, key and
value. Marks, on a CPU: the ensemble takes no longer than a pass through each of five copies of the network with a shard's
adapters in each, and falls towards one pass as requests deactivate layers; the swap to preloaded survivors is 100 times as fast
as what the authors' code does, which loads the shard's whole model from a checkpoint; a unit is 50 times smaller than that. On a
GPU, the ensemble with few rows takes no longer than two passes. `--rows 1 4` sets the numbers of rows (four take ten minutes on one core).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_s3t import EnsembleModule
from lightning_s3t.plan import UnitId
from lightning_s3t.serving.passes import ShardPasses
from lightning_s3t.serving.served_shards import ServedShards
from lightning_s3t.store import Store
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.swap import ModuleSwap
from tests.benchmarks.filled_store import fill
from tests.benchmarks.timing import Ratio, ratio, take_turns
from tests.benchmarks.vision import DEVICE, Classifier

SHARDS, SLICES, ROUNDS = 5, 6, 5
ORDERS = ((0, 1, 2, 3, 4, 5), (2, 3, 4, 5, 0, 1), (4, 5, 0, 1, 2, 3))
ADAPTER = {"peft_type": "LORA", "r": 16, "target_modules": ["qkv"]}
# 1.0, and what two runs of the same thing differ by
MARK_PASSES, MARK_SWITCH, MARK_SIZE, MARK_GPU = 1.05, 100.0, 50.0, 2.0


class Stages:
    """The same shards at one stage: as an ensemble over one network, and as networks of their own.

    Args:
        module: The module.
        path: The store.
        stage: How many slices every shard has left.
    """

    def __init__(self, module: Classifier, path: Path, stage: int) -> None:
        network = copy.deepcopy(module).to(DEVICE)
        builder = StageBuilder(network, find_layers(network, SLICES), resolve_adapter(ADAPTER))
        self._shards = ServedShards(builder)
        self._forward = network.network.forward
        self._sequential = ShardPasses(builder, self._shards, "sequential")
        self._batched = ShardPasses(builder, self._shards, "batched")
        self._apart: list[nn.Module] = []
        with Store.open(path) as store:
            for shard in range(SHARDS):
                unit = UnitId(shard, ORDERS[0][:stage])
                self._shards.load_survivor(unit, tuple(map(str, unit.lineage)), store.load)
                own = copy.deepcopy(module).to(DEVICE)
                lineage = {ancestor.stage: store.load(ancestor) for ancestor in unit.lineage}
                own_builder = StageBuilder(own, find_layers(own, SLICES), resolve_adapter(ADAPTER))
                ModuleSwap(own, own_builder.originals).install(own_builder.build(stage, lineage))
                self._apart.append(own.eval())
        assert all(any(isinstance(m, BaseTunerLayer) for m in own.modules()) for own in self._apart)

    def contestants(self, images: Tensor, bare: nn.Module) -> dict[str, Callable[[], object]]:
        """What is timed on these images."""
        order = list(range(SHARDS))

        return {
            "sequential": lambda: self._sequential.run(self._forward, (images,), {}, order, {}),
            "batched": lambda: self._batched.run(self._forward, (images,), {}, order, {}),
            "apart": lambda: [own(images) for own in self._apart],
            "one": lambda: bare(images),
        }


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, views left out: on a GPU each starts a kernel or more."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        aliases = [value.alias_info for value in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def count_operations(run: Callable[[], object]) -> int:
    """Count what a contestant computes, at its second call."""
    run()
    with Operations() as operations:
        run()
    return operations.count


def time_inference(module: Classifier, path: Path, rows: Sequence[int]) -> tuple[Table, float]:
    """Time the ensemble, networks apart and one pass, at three depths; return a table and what has a mark."""
    found = Table(
        "rows",
        "slices left",
        "sequential, seconds",
        "sequential / five networks",
        "batched / five networks",
        "sequential / one pass",
        "batched / one pass",
        "operations: apart, sequential, batched, one",
        title="An ensemble of five, ViT-base",
    )
    marked = []
    bare = copy.deepcopy(module).to(DEVICE)
    for stage, count in itertools.product((SLICES, 3, 1), rows):
        contestants = Stages(module, path, stage).contestants(torch.randn(count, 3, 224, 224, device=DEVICE), bare)
        with torch.inference_mode():
            operations = {name: count_operations(run) for name, run in contestants.items()}
            times = take_turns(contestants, ROUNDS, f"inference, {stage} slices, {count} rows")
        ratios = {(a, b): ratio(times[a], times[b]) for a in ("sequential", "batched") for b in ("apart", "one")}
        seconds = f"{statistics.median(times['sequential']):.4f}"
        counts = ", ".join(str(operations[name]) for name in ("apart", "sequential", "batched", "one"))
        found.add_row(str(count), str(stage), seconds, *(str(r) for r in _in_order(ratios)), counts)
        marked.append(ratios["batched", "one"] if DEVICE == "cuda" else ratios["sequential", "apart"])
    return found, max(r.median for r in marked)


def _in_order(ratios: dict[tuple[str, str], Ratio]) -> list[Ratio]:
    return [ratios[how, against] for against in ("apart", "one") for how in ("sequential", "batched")]


def time_switch(path: Path, module: Classifier, preload: bool) -> tuple[Ratio, float, float]:
    """Time the swap to the survivors after requests, against loading a whole checkpoint: ratio and medians."""
    swaps, loads = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = shutil.copytree(path, folder / "store")
        torch.save(module.state_dict(), folder / "model.ckpt")
        target = copy.deepcopy(module)
        served = EnsembleModule.from_store(store, module, preload=preload)
        for person in itertools.count():
            before = dict(served.survivors)
            served.store.forget([f"user-{person}"], strict=False)
            start = time.perf_counter()
            served.refresh()
            swap = time.perf_counter() - start
            if len(served.survivors) < SHARDS:  # a shard is used up: there is nothing to swap to
                break
            if served.survivors != before:
                swaps.append(swap)
                start = time.perf_counter()
                target.load_state_dict(torch.load(folder / "model.ckpt", weights_only=True))
                loads.append(time.perf_counter() - start)
    return ratio(loads, swaps), statistics.median(swaps), statistics.median(loads)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; return 1 beyond a mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32] if DEVICE == "cuda" else [1])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        module, path = Classifier("vit_base_patch16_224").eval(), Path(name) / "store"
        sizes = fill(path, module, SHARDS, ORDERS, ADAPTER)
        # first: what inference leaves in the allocator would hide what the memory for a checkpoint costs
        switches = {
            how: time_switch(path, module, preload) for how, preload in (("from disk", False), ("preloaded", True))
        }
        inference, passes = time_inference(module, path, options.rows)
    console.print(inference)
    table = Table("", "a swap, ms", "loading a checkpoint, ms", "times as fast", title="After a request")
    for how, (switch, swap, load) in switches.items():
        table.add_row(how, f"{1000 * swap:.2f}", f"{1000 * load:.0f}", str(switch))
    console.print(table)
    whole, unit = sum(tensor.nbytes for tensor in module.state_dict().values()), statistics.mean(sizes)
    print(
        f"A checkpoint has {whole / 1e6:.0f} MB, a unit {unit / 1e6:.2f} MB: {whole / unit:.0f} times (mark: {MARK_SIZE:g})."
    )
    print(f"All units, preloaded: {sum(sizes) / whole:.0%} of the network.")
    switch = switches["preloaded"][0]
    mark = MARK_GPU if DEVICE == "cuda" else MARK_PASSES
    return int(passes > mark or switch.median < MARK_SWITCH or whole / unit < MARK_SIZE)


if __name__ == "__main__":
    sys.exit(main())
