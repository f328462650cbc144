"""The demo's picture: accuracy and survivors against the number of requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_s3t.zoo.demo.trajectory import Trajectory

COLOURS = {"S3T": "#3b5bdb", "SISA": "#e8590c"}


def draw(trajectories: Mapping[str, Trajectory], lines: Mapping[str, float], path: Path) -> None:
    """Draw accuracy above and survivors below, over the same requests.

    Args:
        trajectories: By method.
        lines: Accuracies to mark across, by label.
        path: The file, PNG.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    last = max(trajectory.requests for trajectory in trajectories.values())
    for label, value in lines.items():
        above.axhline(100 * value, color="#868e96", linewidth=1, linestyle=":")
        above.annotate(label, (last, 100 * value), ha="right", va="bottom", fontsize=8, color="#495057")
    for name, trajectory in trajectories.items():
        above.plot(
            [100 * value for value in trajectory.accuracies],
            color=COLOURS[name],
            label=name,
            drawstyle="steps-post",
        )
        below.plot(trajectory.depths, color=COLOURS[name], label=name, drawstyle="steps-post")
        if trajectory.dark_after is not None:
            above.plot(trajectory.dark_after, 100 * trajectory.accuracies[-1], "x", color=COLOURS[name], markersize=8)
    above.set_ylabel("test accuracy, %")
    above.set_title("Forgetting one person after the other, without any retraining")
    above.legend(loc="center left", frameon=False)
    below.set_ylabel("slices in use,\nall shards")
    below.set_xlabel("deletion requests (x: nothing answers any more)")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=130)
