"""Pictures (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_s3t.plan import Simulation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_survivors(simulations: Mapping[str, Simulation], shards: int, slices: int) -> Figure:
    """Draws what is left against the number of requests, with 95 % intervals.

    Args:
        simulations: By planner, each with moments.
        shards: Number of shards, m.
        slices: Number of slices, L.

    Returns:
        The figure; `figure.savefig(path)` writes it.

    Example:
        >>> from lightning_s3t.plan import cyclic, simulate
        >>> figure = plot_survivors({"cyclic": simulate(2, cyclic(3, 2), requests=range(9), trials=99)}, 2, 3)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['slices served, mean of the shards', 'shards that serve']
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for name, simulation in simulations.items():
        requests = [moment.requests for moment in simulation.moments]
        rate = f"{name}: {simulation.lifetime.mean:.1f} requests until nothing is left"
        for axes, label, estimates in (
            (above, rate, [moment.length for moment in simulation.moments]),
            (below, name, [moment.shards for moment in simulation.moments]),
        ):
            (line,) = axes.plot(requests, [estimate.mean for estimate in estimates], label=label)
            low, high = zip(*(estimate.interval for estimate in estimates), strict=True)
            axes.fill_between(requests, low, high, alpha=0.25, color=line.get_color(), linewidth=0)
    above.set_ylim(0, slices)
    above.set_ylabel("slices served, mean of the shards")
    above.set_title(f"{shards} shards of {slices} slices, without any retraining")
    above.legend(frameon=False)
    below.set_ylim(0, shards)
    below.set_ylabel("shards that serve")
    below.set_xlabel("deletion requests")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return figure
