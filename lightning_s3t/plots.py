"""Pictures (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_s3t.errors import UnsupportedError
from lightning_s3t.plan import Simulation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_s3t.store import Overview

_COLOURS = {"serves": "#1b7837", "alive": "#a6dba0", "aside": "#f6c344", "revoked": "#d6604d", "missing": "#e0e0e0"}

_LABELS = {"aside": "set aside"}


def plot_survivors(simulations: Mapping[str, Simulation], shards: int, slices: int) -> Figure:
    """Draw what remains against the number of requests, with 95 % intervals.

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


def plot_store(found: Overview) -> Figure:
    """Draw a store as a grid of shards and sequences, with a cell for each unit.

    Args:
        found: The result of `Store.status`.

    Returns:
        The figure; `figure.savefig(path)` writes it.

    Raises:
        UnsupportedError: The store's method has no units.
    """
    if not found.has_units:
        raise UnsupportedError(f"The method {found.method!r} trains no units, so there is nothing to draw.")
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    width = max(6.0, 0.35 * len(found.sequences) * found.slices)
    figure = Figure(figsize=(width, 1.8 + 0.4 * found.shards), layout="constrained")
    axes = figure.subplots()
    states = list(_COLOURS)
    # an empty column between two sequences
    numbers = [
        [number for cell in row for number in (*(float(states.index(state)) for state in cell), math.nan)][:-1]
        for row in found.states
    ]
    axes.pcolormesh(
        numbers, cmap=ListedColormap(list(_COLOURS.values())), vmin=-0.5, vmax=len(states) - 0.5, edgecolors="white"
    )
    step = found.slices + 1
    axes.set_xticks(
        [number * step + found.slices / 2 for number in range(len(found.sequences))],
        ["-".join(map(str, sequence)) for sequence in found.sequences],
    )
    axes.set_yticks([shard + 0.5 for shard in range(found.shards)], [str(shard) for shard in range(found.shards)])
    axes.invert_yaxis()
    axes.set_ylabel("shard")
    axes.set_xlabel("order of slices, from the first stage to the last")
    axes.set_title(
        f"{found.requests} requests carried out; {found.capacity:.0f} more expected (a full store: "
        f"{found.full_capacity:.0f})"
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(
        handles=[Patch(color=colour, label=_LABELS.get(state, state)) for state, colour in _COLOURS.items()],
        loc="outside lower center",
        ncols=len(states),
        frameon=False,
    )
    return figure
