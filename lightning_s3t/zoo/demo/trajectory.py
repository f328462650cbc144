"""Deletion requests, one after another, until nothing answers or hardly any people are left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from lightning_s3t import EnsembleModule, Store
from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.zoo.demo.digits import accuracy


@dataclass(frozen=True)
class Trajectory:
    """The course of a store over its requests.

    Attributes:
        accuracies: Before the first request and after each; the publicly trained model's once nothing answers.
        units: Number of living units, in the same form.
        depths: Number of slices that the serving units have learnt, summed over the shards, in the same form.
        latencies: Seconds that each forget took, the swap of the served model included.
        dark_after: Number of requests until nothing answered; None if something still does.
    """

    accuracies: list[float]
    units: list[int]
    depths: list[int]
    latencies: list[float]
    dark_after: int | None = None

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.latencies)

    @property
    def units_gone_after(self) -> int:
        """Number of requests until no unit was left, or of all requests."""
        return next((number for number, alive in enumerate(self.units) if not alive), self.requests)


def forget_on_and_on(
    store: Path,
    model: pl.LightningModule,
    people: Sequence[str],
    test: tuple[Tensor, Tensor],
    tell: Callable[[int, Trajectory], None] | None = None,
) -> Trajectory:
    """Forget one person after another until nothing answers or all have asked, and measure what remains.

    Args:
        store: A trained store.
        model: The publicly trained model.
        people: The people who ask, in this order.
        test: Images and labels that accuracy is measured on.
        tell: Called after each request.
    """
    served = EnsembleModule.from_store(store, model)
    has_floor = PRETRAINED in served.store.heads()
    base = accuracy(model, test)
    trajectory = Trajectory([accuracy(served, test)], [_alive(store)], [_depth(served)], [])
    for number, person in enumerate(people, start=1):
        before, start = served.survivors, time.perf_counter()
        served.forget([person])
        trajectory.latencies.append(time.perf_counter() - start)
        is_dark = not served.survivors and not has_floor
        if is_dark:
            trajectory.accuracies.append(base)
        elif has_floor or served.survivors != before:
            trajectory.accuracies.append(accuracy(served, test))
        else:
            trajectory.accuracies.append(trajectory.accuracies[-1])
        trajectory.units.append(_alive(store))
        trajectory.depths.append(_depth(served))
        if tell is not None:
            tell(number, trajectory)
        if is_dark:
            return replace(trajectory, dark_after=number)
    return trajectory


def _alive(store: Path) -> int:
    with Store.open(store) as opened:
        return len(opened.alive())


def _depth(served: EnsembleModule) -> int:
    return sum(unit.stage for unit in served.survivors.values())
