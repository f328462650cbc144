"""Charts of a store: where their lines, bars and ticks are, for the page's template to draw as SVG."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_s3t.core.receipts import Receipt
from lightning_s3t.core.units import UnitId
from lightning_s3t.plan.outlook import Outlook, outlook
from lightning_s3t.store import Overview, Store

WIDTH, HEIGHT = 640, 220
_POINTS = 60
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 36


@dataclass(frozen=True)
class Tick:
    """A mark on an axis.

    Attributes:
        at: Its position, in pixels.
        label: Its text.
    """

    at: float
    label: str


@dataclass(frozen=True)
class Axes:
    """The axes of a chart: x from 0 to `most_x`, y from 0 to `most_y`.

    Args:
        most_x: The largest x, above 0.
        most_y: The largest y, above 0.
        percent: Whether y is a share, which is shown in percent.

    Example:
        >>> axes = Axes(most_x=10, most_y=1.0, percent=True)
        >>> [tick.label for tick in axes.y_ticks]
        ['0 %', '25 %', '50 %', '75 %', '100 %']
        >>> axes.line([0, 10], [1.0, 0.0])
        '46.0,12.0 628.0,184.0'
    """

    most_x: float
    most_y: float
    percent: bool = False

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        """Return where an x is, in pixels from the left.

        Args:
            value: The x.
        """
        return round(self.left + (self.right - self.left) * value / self.most_x, 1)

    def y(self, value: float) -> float:
        """Return where a y is, in pixels from the top.

        Args:
            value: The y.
        """
        return round(self.bottom - (self.bottom - self.top) * value / self.most_y, 1)

    def line(self, xs: Iterable[float], ys: Iterable[float]) -> str:
        """Return the points of a line, for SVG's polyline.

        Args:
            xs: Each point's x.
            ys: Each point's y.
        """
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in zip(xs, ys, strict=True))

    def steps(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Return the points of a line that stays level until the next x.

        Args:
            xs: Each point's x.
            ys: Each point's y.
        """
        corners = [(xs[0], ys[0])]
        for x, before, after in zip(xs[1:], ys, ys[1:], strict=False):
            corners += [(x, before), (x, after)]
        return self.line(*zip(*corners, strict=True))

    @property
    def x_ticks(self) -> list[Tick]:
        """The marks below the chart."""
        return [Tick(self.x(value), f"{value:,.0f}") for value in _round_values(self.most_x)]

    @property
    def y_ticks(self) -> list[Tick]:
        """The marks next to the chart."""
        if self.percent:
            return [Tick(self.y(part / 4 * self.most_y), f"{25 * part * self.most_y:.0f} %") for part in range(5)]
        return [Tick(self.y(value), f"{value:,.0f}") for value in _round_values(self.most_y)]


def outlook_of(store: Store, overview: Overview) -> Outlook | None:
    """Return how much of a store's data serves after further requests; None if requests have nothing left to revoke.

    Args:
        store: The opened store.
        overview: The store's overview.
    """
    alive = tuple(store.candidates())
    if overview.response != "revoke" or not alive:
        return None
    shares: list[float] = [1.0] * overview.shards
    if overview.generations:  # who came later has a shard of their own, with fewer people
        first, *later = store.count_generations()
        shards = overview.shards - len(overview.generations)
        shares = [first / shards] * shards + [float(count) for count in later]
    if not any(shares):
        return None
    most = max(10, round(1.5 * overview.capacity))
    return _simulate(alive, tuple(shares), overview.slices, range(0, most + 1, max(1, most // _POINTS)))


@functools.lru_cache(maxsize=4)  # the desk asks after every request, and simulating takes longer than all else there
def _simulate(alive: tuple[UnitId, ...], shares: tuple[float, ...], slices: int, requests: range) -> Outlook:
    return outlook(alive, shares, slices, requests)


def survival_chart(found: Outlook | None) -> dict[str, Any] | None:
    """Return the chart of an outlook, for the template to draw.

    Args:
        found: The outlook; None for no chart.
    """
    if found is None:
        return None
    axes = Axes(most_x=found.requests[-1], most_y=1.0, percent=True)
    return {
        "axes": axes,
        "mean": axes.line(found.requests, found.mean),
        "low": axes.line(found.requests, found.low),
        "half": next((r for r, share in zip(found.requests, found.mean, strict=True) if share < 0.5), None),
    }


def revoked_chart(receipts: Sequence[Receipt]) -> dict[str, Any] | None:
    """Return the chart of the revoked units, for the template to draw; None if no request revoked any.

    Args:
        receipts: The receipts of all requests, in order.
    """
    if not any(receipt.revoked_units for receipt in receipts):
        return None
    totals = [0]
    for receipt in receipts:
        totals.append(totals[-1] + receipt.revoked_units)
    axes = Axes(most_x=len(receipts), most_y=totals[-1])
    return {"axes": axes, "revoked": axes.steps(range(len(totals)), totals)}


def _round_values(most: float) -> list[int]:
    rough = max(most / 6, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    return list(range(0, math.floor(most) + 1, step))
