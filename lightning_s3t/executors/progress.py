"""One progress display for all units of a fit."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.executors.unit_plan import PlannedUnit
from lightning_s3t.plan import UnitId


class UnitProgress:
    """Shows which unit of how many is trained, by its name and stage, or which several, and how long is left.

    A unit counts for the rows that it trains on, so that the time left is right although later stages take longer.

    Args:
        units: The units to train, in order.
        weights: The cost of each (rows).
        slices: Number of stages of a sequence.
        enabled: Whether to show anything.

    Example:
        >>> progress = UnitProgress([UnitId(0, (1,))], [10], slices=2, enabled=False)
        >>> progress.describe(UnitId(0, (1,)))
        'unit 1 of 1: 0/1 · stage 1 of 2'
    """

    def __init__(self, units: Sequence[UnitId], weights: Sequence[int], slices: int, enabled: bool) -> None:
        self._positions = {unit: number for number, unit in enumerate(units, start=1)}
        self._weights = dict(zip(units, weights, strict=True))
        self._slices = slices
        self._done = 0.0
        self._shares: dict[UnitId, float] = {}
        self._bar = Tqdm(
            total=sum(weights),
            disable=not enabled,
            bar_format="{desc} |{bar}| {percentage:3.0f}% {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0,  # the average so far: units of one stage come and go too quickly for a trend
        )

    @classmethod
    def of(cls, trainer: pl.Trainer, build: Sequence[PlannedUnit], settings: UnitSettings) -> UnitProgress:
        """Make a display for a plan.

        Args:
            trainer: The trainer; without a progress bar of its own, nothing is shown.
            build: The units to build.
            settings: The settings of units.
        """
        return cls(
            [planned.unit for planned in build],
            [planned.rows for planned in build],
            settings.slices,
            enabled=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )

    def describe(self, unit: UnitId) -> str:
        """Return a unit's place among all units, its name and its stage.

        Args:
            unit: The unit.
        """
        return f"unit {self._positions[unit]} of {len(self._positions)}: {unit} · stage {unit.stage} of {self._slices}"

    def describe_all(self) -> str:
        """Return the units in training: one with its stage, or the names of several."""
        running = sorted(self._shares, key=self._positions.__getitem__)
        if len(running) == 1:
            return self.describe(running[0])
        done = min((self._positions[unit] for unit in running), default=len(self._positions))
        return f"unit {done} of {len(self._positions)}, {len(running)} at once: {', '.join(map(str, running))}"

    def start(self, unit: UnitId) -> None:
        """Start the next unit, in addition to unfinished ones.

        Args:
            unit: The unit that is trained now.
        """
        self._shares[unit] = 0.0
        self._bar.set_description_str(self.describe_all())

    def update(self, trainer: pl.Trainer) -> None:
        """Show the progress of the running unit.

        Args:
            trainer: The trainer.
        """
        if self._bar.disable:
            return
        for unit in self._shares:
            self.show(unit, share_done(trainer))

    def show(self, unit: UnitId, share: float) -> None:
        """Show the progress of a running unit.

        Args:
            unit: The unit.
            share: From 0 to 1.
        """
        if unit in self._shares:
            self._shares[unit] = share
            self._move()

    def finish_unit(self, unit: UnitId) -> None:
        """Count a running unit as done.

        Args:
            unit: The unit.
        """
        if self._shares.pop(unit, None) is not None:
            self._done += self._weights[unit]
            self._move()

    def withdraw(self, unit: UnitId) -> None:
        """Take back that a unit was started.

        Args:
            unit: The unit.
        """
        self._shares.pop(unit, None)

    def close(self) -> None:
        """End the display."""
        self._bar.close()

    def _move(self) -> None:
        value = self._done + sum(share * self._weights[unit] for unit, share in self._shares.items())
        self._bar.update(max(value - self._bar.n, 0))


def share_done(trainer: pl.Trainer) -> float:
    """Return how far a trainer is in its fit loop, from 0 to 1.

    Args:
        trainer: The trainer.
    """
    loop = trainer.fit_loop
    batches, epochs = loop.max_batches or 1, max(loop.max_epochs or 1, 1)
    return float(min((trainer.current_epoch + (loop.batch_idx + 1) / batches) / epochs, 1.0))
